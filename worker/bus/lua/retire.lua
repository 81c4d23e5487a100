#!lua flags=allow-oom
-- Delete a consumer that owns nothing. The next read of a live worker creates its consumer again.
--
-- KEYS  1 sessions  2 lost, unused
-- ARGV  1 group  2 consumer
-- Returns 1 if it is gone, 0 if it still owns entries.
if #redis.call("XPENDING", KEYS[1], ARGV[1], "-", "+", 1, ARGV[2]) > 0 then
  return 0
end
redis.call("XGROUP", "DELCONSUMER", KEYS[1], ARGV[1], ARGV[2])
return 1
