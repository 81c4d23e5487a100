#!lua flags=allow-oom
-- Once a second: keep what is ours from idling, learn what is not ours any more.
--
-- KEYS  1 sessions
-- ARGV  1 group  2 consumer, then (entry id, delivery count) for each session that is run
-- Returns {taken, nowhere, orphans}: ids now under another consumer or count; ids no consumer
-- holds; and (id, count) pairs that are ours but that nobody runs.
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
  if ours[id] == count then
    touch[#touch + 1] = id
  elseif ours[id] then
    taken[#taken + 1] = id
  else
    local row = redis.call("XPENDING", KEYS[1], group, id, id, 1)[1]
    if row then
      taken[#taken + 1] = id
    else
      nowhere[#nowhere + 1] = id
    end
  end
  ours[id] = nil
end
for at = 1, #touch, 1000 do
  local ids = {unpack(touch, at, math.min(at + 999, #touch))}
  ids[#ids + 1] = "JUSTID"
  redis.call("XCLAIM", KEYS[1], group, consumer, 0, unpack(ids))
end
local orphans = {}
for id, count in pairs(ours) do
  orphans[#orphans + 1] = id
  orphans[#orphans + 1] = tostring(count)
end
return {taken, nowhere, orphans}
