"""What Redis or Valkey does at one go: the scripts of the Redis store, and the keys that they use.

    longshort:s:<id>      hash: e epoch, c client id of its opening, g the record's mark, m model, r record,
                          b epoch of its birth, o process of its opening, n the first epoch of that
                          process's run of openings, w number of the last write under its epoch
    longshort:ids         sorted set of all ids, in their order
    longshort:used        sorted set of all ids by the last use of their records, in seconds since 1970
    longshort:models      hash: how many records each model version has
    longshort:tombstones  sorted set of what has expired, by when
    longshort:epoch       the greatest epoch ever drawn
    longshort:written     what pings and waits write

The scripts compute the keys that they use, which a cluster would not allow. They are sent with each call: for calls of
many sessions their text weighs nothing, and a server that has forgotten them asks for nothing. The first write of each
that adds to memory is one that a server without memory refuses: a script is done wholly or not at all.

Epochs are numbers below 2^53, which Lua's can hold, until the year 2255.
"""

from __future__ import annotations

from typing import Final

_KEYS: Final = """
local PREFIX = 'longshort:'
local IDS, USED, MODELS = PREFIX .. 'ids', PREFIX .. 'used', PREFIX .. 'models'
local TOMBSTONES, EPOCH, WRITTEN = PREFIX .. 'tombstones', PREFIX .. 'epoch', PREFIX .. 'written'

local function key_of(id)
  return PREFIX .. 's:' .. id
end

local function count_model(model, change)
  if model and redis.call('HINCRBY', MODELS, model, change) <= 0 then
    redis.call('HDEL', MODELS, model)
  end
end

local function remove(id)
  local model = redis.call('HGET', key_of(id), 'm')
  if redis.call('DEL', key_of(id)) == 0 then
    return 0
  end
  redis.call('ZREM', IDS, id)
  redis.call('ZREM', USED, id)
  count_model(model, -1)
  return 1
end
"""

# max_entries, now_s, process, then for each session: id, mode, client id, model, birth ('': create nothing).
# Returns for each: found, previous epoch, epoch, mark, record, epoch of the birth, begin of the process's own run ('0':
# another's); for one that exists: found, record, client id. At the end the number of entries.
OPEN: Final = (
    _KEYS
    + """
local max_entries, now_s, process = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local time = redis.call('TIME')
local epoch = tonumber(redis.call('GET', EPOCH) or '0')
epoch = math.max(epoch, time[1] * 1000000 + time[2] - 1)

local function draw()
  epoch = epoch + 1
  local text = string.format('%.0f', epoch)
  redis.call('SET', EPOCH, text)
  return text
end

local function create(id, client, model, birth)
  local drawn = draw()
  redis.call('HSET', key_of(id), 'e', drawn, 'b', drawn, 'c', client, 'g', '0', 'm', model, 'r', birth,
    'o', process, 'n', drawn, 'w', '0')
  redis.call('ZREM', TOMBSTONES, id)
  redis.call('ZADD', IDS, 0, id)
  redis.call('ZADD', USED, now_s, id)
  count_model(model, 1)
  return {'CREATED', '0', drawn}
end

local function open(id, mode, client, model, birth)
  local entry = redis.call('HMGET', key_of(id), 'e', 'g', 'r', 'b', 'o', 'n', 'c')
  if entry[1] and mode == 'CREATE' then
    return {'EXISTS', entry[3], entry[7]}
  end
  if entry[1] then
    local drawn = draw()
    local is_ours = entry[5] == process
    local since = is_ours and entry[6] or drawn
    redis.call('HSET', key_of(id), 'e', drawn, 'c', client, 'g', '0', 'o', process, 'n', since, 'w', '0')
    return {'OPENED', entry[1], drawn, entry[2], entry[3], entry[4], is_ours and since or '0'}
  end
  if mode ~= 'CREATE' and redis.call('ZSCORE', TOMBSTONES, id) then
    return {'EXPIRED'}
  end
  if mode == 'OPEN' or birth == '' then
    return {'ABSENT'}
  end
  if redis.call('ZCARD', IDS) >= max_entries then
    return {'EXHAUSTED'}
  end
  return create(id, client, model, birth)
end

local openings = {}
for i = 4, #ARGV, 5 do
  openings[#openings + 1] = open(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4])
end
openings[#openings + 1] = redis.call('ZCARD', IDS)
return openings
"""
)

# The number of this write among those of its process, the process, then for each record: id, epoch, mark, last use,
# model, record. Returns for each 1: accepted, 0: gone, or of the opening that has raised its epoch the client id, that
# epoch, and the begin of the process's own run ('0': another's). A write that arrives behind a later one, from a
# connection that was given up, changes nothing; nobody waits for its reply.
WRITE: Final = (
    _KEYS
    + """
local number, process = ARGV[1], ARGV[2]

local function write(id, epoch, mark, used_s, model, record)
  local entry = redis.call('HMGET', key_of(id), 'e', 'c', 'm', 'w', 'o', 'n')
  if not entry[1] then
    return 0
  end
  if entry[1] ~= epoch then
    return {entry[2], entry[1], entry[5] == process and entry[6] or '0'}
  end
  if tonumber(entry[4]) > tonumber(number) then
    return 1
  end
  redis.call('HSET', key_of(id), 'g', mark, 'r', record, 'w', number)
  redis.call('ZADD', USED, used_s, id)
  if entry[3] ~= model then
    redis.call('HSET', key_of(id), 'm', model)
    count_model(entry[3], -1)
    count_model(model, 1)
  end
  return 1
end

local results = {}
for i = 3, #ARGV, 6 do
  results[#results + 1] = write(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5])
end
return results
"""
)

# An id. Returns mark, record and epoch of the birth; 1: expired; 0: unknown.
READ: Final = (
    _KEYS
    + """
local entry = redis.call('HMGET', key_of(ARGV[1]), 'g', 'r', 'b')
if entry[1] then
  return entry
end
return redis.call('ZSCORE', TOMBSTONES, ARGV[1]) and 1 or 0
"""
)

# For each session id and epoch ('': whatever it is). Returns for each 1: removed, or 0; at the end the number of
# entries.
DELETE: Final = (
    _KEYS
    + """
local results = {}
for i = 1, #ARGV, 2 do
  local id, epoch = ARGV[i], ARGV[i + 1]
  local is_it = epoch == '' or redis.call('HGET', key_of(id), 'e') == epoch
  results[#results + 1] = is_it and remove(id) or 0
end
results[#results + 1] = redis.call('ZCARD', IDS)
return results
"""
)

# before_s, now_s, then for each session id and epoch. Returns for each 1: buried, or 0; at the end the number of
# entries.
BURY: Final = (
    _KEYS
    + """
local function bury(id, epoch, before_s, now_s)
  local used_s = redis.call('ZSCORE', USED, id)
  if redis.call('HGET', key_of(id), 'e') ~= epoch or not used_s or tonumber(used_s) >= tonumber(before_s) then
    return 0
  end
  remove(id)
  redis.call('ZADD', TOMBSTONES, now_s, id)
  return 1
end

local results = {}
for i = 3, #ARGV, 2 do
  results[#results + 1] = bury(ARGV[i], ARGV[i + 1], ARGV[1], ARGV[2])
end
results[#results + 1] = redis.call('ZCARD', IDS)
return results
"""
)

# before_s, limit. Returns id and epoch, id and epoch, and so on.
IDLE: Final = (
    _KEYS
    + """
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', USED, '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])) do
  found[#found + 1] = id
  found[#found + 1] = redis.call('HGET', key_of(id), 'e') or '0'
end
return found
"""
)

# before_s, limit. Returns how many tombstones were dropped: other calls wait meanwhile, so at most `limit`.
FORGET: Final = (
    _KEYS
    + """
local old = redis.call('ZRANGEBYSCORE', TOMBSTONES, '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(old) do
  redis.call('ZREM', TOMBSTONES, id)
end
return #old
"""
)

# Lowest id, highest id (both as ZRANGE takes them), limit.
LIST: Final = _KEYS + "return redis.call('ZRANGE', IDS, ARGV[1], ARGV[2], 'BYLEX', 'LIMIT', 0, ARGV[3])"

# A model. Returns 1 where it has records.
HAS: Final = _KEYS + "return redis.call('HEXISTS', MODELS, ARGV[1])"

# A server that can be reached and not written is away too. Returns the number of entries.
PING: Final = _KEYS + "redis.call('SET', WRITTEN, '1') return redis.call('ZCARD', IDS)"
