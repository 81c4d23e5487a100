#!lua flags=allow-oom
-- Run one small write, even where memory is full: bookkeeping without which it would stay full.
--
-- KEYS  1 what is written
-- ARGV  1 command  then its arguments after the key
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
