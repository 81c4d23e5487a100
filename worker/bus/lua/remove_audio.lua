#!lua flags=allow-oom
-- Remove an audio stream that has no session and gets no new entries.
--
-- Returns 1 if it was removed; 0 if it has a session, is younger, or is not a stream.
local state_key = KEYS[1]
local audio_key = KEYS[2]
local min_age_ms = tonumber(ARGV[1])  -- of the last entry

if redis.call("EXISTS", state_key) == 1 or redis.call("TYPE", audio_key).ok ~= "stream" then
  return 0
end
local about = redis.call("XINFO", "STREAM", audio_key)
local last
for at = 1, #about, 2 do
  if about[at] == "last-generated-id" then
    last = tonumber(string.match(about[at + 1], "^(%d+)-"))
  end
end
local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
if last > now - min_age_ms then
  return 0
end
redis.call("UNLINK", audio_key)
return 1
