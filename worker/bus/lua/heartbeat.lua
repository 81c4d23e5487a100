#!lua flags=allow-oom
-- Heartbeat: renew the leases of this consumer, and report what it does not own any more.
--
-- Returns {taken, missing, unclaimed}: ids that another consumer owns; ids that no consumer owns,
-- or that left the stream; and (id, count) pairs that this consumer owns but does not run, or runs
-- with a smaller count.
local sessions_key = KEYS[1]
local lost_key = KEYS[2]  -- ids of entries that left the stream while their sessions were live
local group = ARGV[1]
local consumer = ARGV[2]
local running_at = 3  -- (entry id, delivery count) for each running session

local own = {}
local from = "-"
while true do
  local page = redis.call("XPENDING", sessions_key, group, from, "+", 1000, consumer)
  for _, row in ipairs(page) do
    own[row[1]] = row[4]
  end
  if #page < 1000 then
    break
  end
  from = "(" .. page[#page][1]
end
local taken, missing, touch = {}, {}, {}
for at = running_at, #ARGV, 2 do
  local id, count = ARGV[at], tonumber(ARGV[at + 1])
  if not own[id] then
    if #redis.call("XPENDING", sessions_key, group, id, id, 1) > 0 then
      taken[#taken + 1] = id
    else
      missing[#missing + 1] = id
    end
  elseif own[id] <= count then
    if own[id] < count then
      -- A recreated group counts from 1; the claim stays valid.
      redis.call("XCLAIM", sessions_key, group, consumer, 0, id, "RETRYCOUNT", count, "JUSTID")
    end
    touch[#touch + 1] = id
    own[id] = nil
  end
end
for at = 1, #touch, 1000 do
  local ids = {unpack(touch, at, math.min(at + 999, #touch))}
  ids[#ids + 1] = "JUSTID"
  local there = redis.call("XCLAIM", sessions_key, group, consumer, 0, unpack(ids))
  if #there < #ids - 1 then
    -- Entries that left the stream are off the pending list now. Record their ids for recovery.
    local now, known = redis.call("TIME")[1], {}
    for _, id in ipairs(there) do
      known[id] = true
    end
    for nth = 1, #ids - 1 do
      if not known[ids[nth]] then
        missing[#missing + 1] = ids[nth]
        redis.call("ZADD", lost_key, "NX", now, ids[nth])
      end
    end
  end
end
local unclaimed = {}
for id, count in pairs(own) do
  unclaimed[#unclaimed + 1] = id
  unclaimed[#unclaimed + 1] = tostring(count)
end
return {taken, missing, unclaimed}
