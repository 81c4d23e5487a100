-- The environment of Redis's scripts. It gets the functions of the model, and returns three:
-- compile(text), call_script(script, number of keys, keys and values...) and set_json(functions).
--
-- A value crosses to and from the model with its kind first: 0 a scalar, 1 an array of scalars,
-- each its own value, 2 a table, 3 an error and 4 a status, each with its text.
local run_command, log, sha1hex = ...
local error, getinfo, loadstring, pcall, rawset = error, debug.getinfo, loadstring, pcall, rawset
local select, setmetatable, tostring, type, unpack = select, setmetatable, tostring, type, unpack
local xpcall, globals = xpcall, _G

local MAX_SCALARS = 200

local function script_line()
  local level = 2
  local about = getinfo(level, "Sl")
  while about do
    if about.source == "@user_script" then
      return about.currentline
    end
    level = level + 1
    about = getinfo(level, "Sl")
  end
  return 0
end

local function received(raises, kind, value, ...)
  if kind == 0 or kind == 2 then
    return value
  elseif kind == 1 then
    return {value, ...}
  elseif kind == 4 then
    return {ok = value}
  end
  local failure = {err = value, line = script_line()}
  if raises then
    error(failure, 0)
  end
  return failure
end

redis = {
  call = function(...) return (received(true, run_command(...))) end,
  pcall = function(...) return (received(false, run_command(...))) end,
  error_reply = function(text) return {err = text} end,
  status_reply = function(text) return {ok = text} end,
  sha1hex = function(text) return sha1hex(text) end,
  log = function(...) log(...) end,
  LOG_DEBUG = 0, LOG_VERBOSE = 1, LOG_NOTICE = 2, LOG_WARNING = 3,
}
server = redis

local function failed(problem)
  if type(problem) == "table" then
    return problem
  end
  return {err = "ERR " .. tostring(problem), line = script_line()}
end

local function returned(value)
  if type(value) ~= "table" then
    return 0, value
  end
  if value.err then
    return 3, value.err
  elseif value.ok then
    return 4, value.ok
  end
  local count = 0
  while value[count + 1] ~= nil do
    count = count + 1
    if type(value[count]) == "table" then
      return 2, value
    end
  end
  if count == 0 or count > MAX_SCALARS then
    return 2, value
  end
  return 1, unpack(value, 1, count)
end

local function call_script(script, key_count, ...)
  local keys, values, at = {}, {}, 0
  if select("#", ...) > 0 then
    local given = {...}
    for nth = 1, key_count do
      keys[nth] = given[nth]
    end
    for nth = key_count + 1, #given do
      at = at + 1
      values[at] = given[nth]
    end
  end
  rawset(globals, "KEYS", keys)
  rawset(globals, "ARGV", values)
  local succeeded, result = xpcall(script, failed)
  if succeeded then
    return returned(result)
  end
  return 3, result.err, result.line
end

local function compile(text)
  local script, problem = loadstring(text, "@user_script")
  return script, problem
end

local function set_json(decode, null)
  cjson = {decode = function(text) return decode(text) end, null = null}
end

for _, name in ipairs({"os", "io", "python", "require", "module", "package", "dofile", "loadfile",
    "print", "newproxy", "collectgarbage"}) do
  globals[name] = nil
end
debug = false  -- lupa looks it up outside of a protected call

local function protect()
  setmetatable(globals, {
    __index = function(_, name)
      error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
    end,
    __newindex = function()
      error("Attempt to modify a readonly table", 2)
    end,
  })
end

return compile, call_script, set_json, protect
