#!lua flags=allow-oom
-- Remove the entry of a session that ended from the group and from the stream.
--
-- KEYS  1 sessions
-- ARGV  1 group  2 entry
redis.call("XACK", KEYS[1], ARGV[1], ARGV[2])
redis.call("XDEL", KEYS[1], ARGV[2])
