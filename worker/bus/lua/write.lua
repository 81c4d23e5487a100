#!lua flags=allow-oom
-- Run one small write even if memory is full. Without such records Redis would stay full.
--
-- KEYS  1 key to write
-- ARGV  1 command  then its arguments after the key
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
