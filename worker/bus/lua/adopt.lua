#!lua flags=allow-oom
-- Take over entries given back by their owner, and entries whose owner fell silent.
--
-- KEYS  1 sessions
-- ARGV  1 group  2 consumer  3 reserved consumer of entries given back  4 lease ms  5 at most
-- Returns {id, count, fields} for each entry that is ours now.
local key, group, consumer, released = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local room = tonumber(ARGV[5])
local adopted = {}

local function take(rows, owner_is_dead)
  for _, row in ipairs(rows) do
    if #adopted < room and (row[2] == released or owner_is_dead) and row[2] ~= consumer then
      local claimed = redis.call("XCLAIM", key, group, consumer, 0, row[1])[1]
      if claimed then
        adopted[#adopted + 1] = {row[1], row[4] + 1, claimed[2]}
      end
    end
  end
end

take(redis.call("XPENDING", key, group, "-", "+", room, released), false)
if #adopted < room then
  take(redis.call("XPENDING", key, group, "IDLE", ARGV[4], "-", "+", room), true)
end
return adopted
