#!lua flags=allow-oom
-- Raise the delivery count of an entry of this consumer above the count of an older claim.
--
-- A recreated group counts deliveries from 1.
--
-- Returns 1 if this consumer still owned the entry with either count.
local sessions_key = KEYS[1]
local lost_key = KEYS[2]  -- ids of entries that left the stream while their sessions were live
local group = ARGV[1]
local consumer = ARGV[2]
local entry_id = ARGV[3]
local delivery_count = tonumber(ARGV[4])
local new_count = tonumber(ARGV[5])

local row = redis.call("XPENDING", sessions_key, group, entry_id, entry_id, 1)[1]
if not row or row[2] ~= consumer or (row[4] ~= delivery_count and row[4] ~= new_count) then
  return 0
end
local there = redis.call(
  "XCLAIM", sessions_key, group, consumer, 0, entry_id, "RETRYCOUNT", new_count, "JUSTID")
if #there == 0 then
  redis.call("ZADD", lost_key, "NX", redis.call("TIME")[1], entry_id)
end
return 1
