#!lua flags=allow-oom
-- Raise the delivery count of an entry that is ours, above that of a claim known to be older.
--
-- A group that was destroyed and made again counts deliveries from 1.
--
-- KEYS  1 sessions  2 lost: ids of entries that left the stream while their sessions lived
-- ARGV  1 group  2 consumer  3 entry id  4 delivery count it has  5 delivery count it gets
-- Returns 1 if the entry was still ours with either count.
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
