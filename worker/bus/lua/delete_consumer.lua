#!lua flags=allow-oom
-- Delete a consumer that owns nothing. The next read of a live worker creates its consumer again.
--
-- Returns 1 if it is gone, 0 if it still owns entries.
local sessions_key = KEYS[1]
local group = ARGV[1]
local consumer = ARGV[2]

if #redis.call("XPENDING", sessions_key, group, "-", "+", 1, consumer) > 0 then
  return 0
end
redis.call("XGROUP", "DELCONSUMER", sessions_key, group, consumer)
return 1
