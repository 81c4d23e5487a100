#!lua flags=allow-oom
-- Take over entries given back by their owner, and entries whose owner is dead or fell silent.
--
-- KEYS  1 sessions  2 lost: ids of entries that left the stream while their sessions lived
-- ARGV  1 group  2 consumer  3 reserved consumer of entries given back  4 lease ms  5 at most
--       then the consumers known to be dead
-- Returns {ours, lost}: {id, delivery count, fields, owner before} for each entry that is ours now;
-- 1 if there are lost ids: a claim takes what left the stream off the pending list.
local key, group, consumer = KEYS[1], ARGV[1], ARGV[2]
local room = tonumber(ARGV[5])
local adopted = {}

local function take(rows)
  for _, row in ipairs(rows) do
    if #adopted < room and row[2] ~= consumer then
      local claimed = redis.call("XCLAIM", key, group, consumer, 0, row[1])[1]
      if claimed then
        adopted[#adopted + 1] = {row[1], row[4] + 1, claimed[2], row[2]}
      else
        redis.call("ZADD", KEYS[2], "NX", redis.call("TIME")[1], row[1])
      end
    end
  end
end

take(redis.call("XPENDING", key, group, "-", "+", room, ARGV[3]))
for at = 6, #ARGV do
  take(redis.call("XPENDING", key, group, "-", "+", room, ARGV[at]))
end
if #adopted < room then
  take(redis.call("XPENDING", key, group, "IDLE", ARGV[4], "-", "+", room))
end
return {adopted, redis.call("EXISTS", KEYS[2])}
