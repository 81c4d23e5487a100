#!lua flags=allow-oom
-- Give entries back: whoever has room may take them at once.
--
-- KEYS  1 sessions
-- ARGV  1 group  2 consumer  3 reserved consumer, then (entry id, delivery count) pairs
-- Returns how many were still ours, and in the stream. What left it stays ours, to be put back.
local given = 0
for at = 4, #ARGV, 2 do
  local row = redis.call("XPENDING", KEYS[1], ARGV[1], ARGV[at], ARGV[at], 1)[1]
  local is_ours = row and row[2] == ARGV[2] and row[4] == tonumber(ARGV[at + 1])
  if is_ours and #redis.call("XRANGE", KEYS[1], ARGV[at], ARGV[at]) > 0 then
    given = given + #redis.call("XCLAIM", KEYS[1], ARGV[1], ARGV[3], 0, ARGV[at], "JUSTID")
  end
end
return given
