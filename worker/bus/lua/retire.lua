#!lua flags=allow-oom
-- Remove a consumer that owns nothing. One that lives is made again by its next read.
--
-- KEYS  1 sessions  2 lost, which is left alone
-- ARGV  1 group  2 consumer
-- Returns 1 if it is gone, 0 if it still owns entries.
if #redis.call("XPENDING", KEYS[1], ARGV[1], "-", "+", 1, ARGV[2]) > 0 then
  return 0
end
redis.call("XGROUP", "DELCONSUMER", KEYS[1], ARGV[1], ARGV[2])
return 1
