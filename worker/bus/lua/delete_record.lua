#!lua flags=allow-oom
-- Delete a worker's record, unless a restarted worker has overwritten it.
--
-- Returns 1.
local workers_key = KEYS[1]
local worker_id = ARGV[1]
local consumer = ARGV[2]

local record = redis.call("HGET", workers_key, worker_id)
local is_json, known = pcall(cjson.decode, record or "")
if is_json and type(known) == "table" and known.consumer == consumer then
  redis.call("HDEL", workers_key, worker_id)
end
return 1
