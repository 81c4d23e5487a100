#!lua flags=allow-oom
-- Heartbeat: renew the leases of this consumer, and report what it does not own any more.
--
-- KEYS  1 sessions  2 lost: ids of entries that left the stream while their sessions were live
-- ARGV  1 group  2 consumer, then (entry id, delivery count) for each running session
-- Returns {taken, missing, unclaimed}: ids that another consumer owns; ids that no consumer owns,
-- or that left the stream; and (id, count) pairs that this consumer owns but does not run, or runs
-- with a smaller count.
local group, consumer = ARGV[1], ARGV[2]
local ours = {}
local from = "-"
while true do
  local page = redis.call("XPENDING", KEYS[1], group, from, "+", 1000, consumer)
  for _, row in ipairs(page) do
    ours[row[1]] = row[4]
  end
  if #page < 1000 then
    break
  end
  from = "(" .. page[#page][1]
end
local taken, nowhere, touch = {}, {}, {}
for at = 3, #ARGV, 2 do
  local id, count = ARGV[at], tonumber(ARGV[at + 1])
  if not ours[id] then
    if #redis.call("XPENDING", KEYS[1], group, id, id, 1) > 0 then
      taken[#taken + 1] = id
    else
      nowhere[#nowhere + 1] = id
    end
  elseif ours[id] <= count then
    if ours[id] < count then
      -- A recreated group counts from 1; the claim stays valid.
      redis.call("XCLAIM", KEYS[1], group, consumer, 0, id, "RETRYCOUNT", count, "JUSTID")
    end
    touch[#touch + 1] = id
    ours[id] = nil
  end
end
for at = 1, #touch, 1000 do
  local ids = {unpack(touch, at, math.min(at + 999, #touch))}
  ids[#ids + 1] = "JUSTID"
  local there = redis.call("XCLAIM", KEYS[1], group, consumer, 0, unpack(ids))
  if #there < #ids - 1 then
    -- Entries that left the stream are off the pending list now. Record their ids for recovery.
    local now, known = redis.call("TIME")[1], {}
    for _, id in ipairs(there) do
      known[id] = true
    end
    for nth = 1, #ids - 1 do
      if not known[ids[nth]] then
        nowhere[#nowhere + 1] = ids[nth]
        redis.call("ZADD", KEYS[2], "NX", now, ids[nth])
      end
    end
  end
end
local orphans = {}
for id, count in pairs(ours) do
  orphans[#orphans + 1] = id
  orphans[#orphans + 1] = tostring(count)
end
return {taken, nowhere, orphans}
