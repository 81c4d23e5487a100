#!lua flags=allow-oom
-- Remove an audio stream that has no session and gets no new entries.
--
-- KEYS  1 state  2 audio
-- ARGV  1 minimum age of the last entry, ms
-- Returns 1 if it was removed; 0 if it has a session, is younger, or is not a stream.
if redis.call("EXISTS", KEYS[1]) == 1 or redis.call("TYPE", KEYS[2]).ok ~= "stream" then
  return 0
end
local about = redis.call("XINFO", "STREAM", KEYS[2])
local last
for at = 1, #about, 2 do
  if about[at] == "last-generated-id" then
    last = tonumber(string.match(about[at + 1], "^(%d+)-"))
  end
end
local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if last > now - tonumber(ARGV[1]) then
  return 0
end
redis.call("UNLINK", KEYS[2])
return 1
