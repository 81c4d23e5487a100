#!lua flags=allow-oom
-- Report to the fleet's breaker of one provider what a worker's sockets met, and ask for a probe.
--
-- It removes the key last or not at all: a script that removed the key of a moving slot may not use
-- it again.
--
-- Returns the state (closed, open or probing), and 1 if this worker has the probe, otherwise 0.
local breaker_key = KEYS[1]  -- of a closed breaker: failures; of an open one: wait, probe_at, probe
local holder = ARGV[1]
local succeeded = tonumber(ARGV[2])  -- 1 if a socket worked before the failures
local probe = ARGV[3]  -- how this worker's probe ended: ok, failed or empty
local wants_probe = tonumber(ARGV[4])
local max_failures = tonumber(ARGV[5])
local window_ms = tonumber(ARGV[6])
local lease_ms = tonumber(ARGV[7])
local first_wait_ms = tonumber(ARGV[8])
local max_wait_ms = tonumber(ARGV[9])
local jitter = tonumber(ARGV[10])  -- factor of the time to the next probe
local expiry_s = tonumber(ARGV[11])  -- of an open breaker that no worker probes
local sessions_at = 12  -- the session of each failure, in order

local time = redis.call("TIME")
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local known = {}
local stored = redis.call("HGETALL", breaker_key)
for at = 1, #stored, 2 do
  known[stored[at]] = stored[at + 1]
end

local function whole(number)
  return string.format("%.0f", number)
end

local function wait_for_probe(wait_ms)
  known = {wait = whole(wait_ms), probe_at = whole(now + wait_ms * jitter)}
  redis.call("HSET", breaker_key, "wait", known.wait, "probe_at", known.probe_at)
  redis.call("HDEL", breaker_key, "probe", "failures")
  redis.call("EXPIRE", breaker_key, expiry_s)
end

local works = probe == "ok" or (succeeded == 1 and known.failures)
if works then
  known = {}
elseif probe == "failed" and known.wait and string.match(known.probe or "", " (.*)$") == holder then
  wait_for_probe(math.min(2 * tonumber(known.wait), max_wait_ms))
end

if not known.wait then
  local failures, of_session = {}, {}
  local function add(at, session)
    of_session[session] = (of_session[session] or 0) + 1
    -- One session alone never reaches the number.
    if of_session[session] < max_failures then
      failures[#failures + 1] = at .. " " .. session
    end
  end
  for at, session in string.gmatch(known.failures or "", "(%d+) ([^,]+)") do
    if math.abs(now - tonumber(at)) <= window_ms then
      add(at, session)
    end
  end
  for at = sessions_at, #ARGV do
    add(whole(now), ARGV[at])
  end
  if #failures >= max_failures then
    wait_for_probe(first_wait_ms)
  elseif #ARGV >= sessions_at then
    redis.call("HSET", breaker_key, "failures", table.concat(failures, ","))
    redis.call("HDEL", breaker_key, "wait", "probe_at", "probe")
    redis.call("EXPIRE", breaker_key, math.ceil(window_ms / 1000))
  elseif works then
    redis.call("UNLINK", breaker_key)
  end
end

if not known.wait then
  return {"closed", 0}
end
-- A time too far ahead is of a clock that was set back since.
local until_ms, prober = string.match(known.probe or "", "^(%d+) (.*)$")
if until_ms and tonumber(until_ms) > now and tonumber(until_ms) <= now + lease_ms then
  return {"probing", prober == holder and 1 or 0}
end
local probe_at = tonumber(known.probe_at)
local due = probe_at <= now or probe_at > now + 2 * max_wait_ms
if wants_probe == 1 and due then
  redis.call("HSET", breaker_key, "probe", whole(now + lease_ms) .. " " .. holder)
  redis.call("EXPIRE", breaker_key, expiry_s)
  return {"probing", 1}
end
return {"open", 0}
