#!lua flags=allow-oom
-- Delete a worker's record, unless a restarted worker has overwritten it.
--
-- KEYS  1 workers
-- ARGV  1 worker id  2 consumer
local record = redis.call("HGET", KEYS[1], ARGV[1])
local is_json, known = pcall(cjson.decode, record or "")
if is_json and type(known) == "table" and known.consumer == ARGV[2] then
  redis.call("HDEL", KEYS[1], ARGV[1])
end
return 1
