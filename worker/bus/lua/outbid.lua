#!lua flags=allow-oom
-- Raise the delivery count of an entry of this consumer above the count of an older claim.
--
-- A recreated group counts deliveries from 1.
--
-- KEYS  1 sessions  2 lost: ids of entries that left the stream while their sessions were live
-- ARGV  1 group  2 consumer  3 entry id  4 current delivery count  5 new delivery count
-- Returns 1 if this consumer still owned the entry with either count.
local row = redis.call("XPENDING", KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1)[1]
if not row or row[2] ~= ARGV[2] then
  return 0
end
if row[4] ~= tonumber(ARGV[4]) and row[4] ~= tonumber(ARGV[5]) then
  return 0
end
local there =
  redis.call("XCLAIM", KEYS[1], ARGV[1], ARGV[2], 0, ARGV[3], "RETRYCOUNT", ARGV[5], "JUSTID")
if #there == 0 then
  redis.call("ZADD", KEYS[2], "NX", redis.call("TIME")[1], ARGV[3])
end
return 1
