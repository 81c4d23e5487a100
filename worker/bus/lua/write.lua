#!lua flags=allow-oom
-- Run one small write even if memory is full. Without such records Redis would stay full.
--
-- Returns the command's reply.
local key = KEYS[1]
local command = ARGV[1]
local values_at = 2  -- the command's arguments after the key

return redis.call(command, key, unpack(ARGV, values_at))
