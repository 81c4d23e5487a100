#!lua flags=allow-oom
-- Ask for one of the fleet's permits to hold an open STT socket: first come, first served.
--
-- KEYS  1 gate
-- ARGV  1 member  2 permits
-- Returns 1 if the member may open a socket, 0 if it has to wait. Its place is kept either way.
local now = redis.call("TIME")
redis.call("ZADD", KEYS[1], "NX", now[1] .. string.format("%06d", now[2]), ARGV[1])
return redis.call("ZRANK", KEYS[1], ARGV[1]) < tonumber(ARGV[2]) and 1 or 0
