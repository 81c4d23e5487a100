#!lua flags=allow-oom
-- Take over released entries, and entries of owners that are dead or idle for a lease.
--
-- KEYS  1 sessions  2 lost: ids of entries that left the stream while their sessions were live
-- ARGV  1 group  2 consumer  3 reserved consumer of released entries  4 lease ms  5 at most
--       then the consumers known to be dead
-- Returns {owned, lost}: {id, delivery count, fields, previous owner} for each entry that this
-- consumer owns now; 1 if there are lost ids. XCLAIM drops a deleted entry from the pending list.
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
