"""What the server runs in one step: the Lua scripts.

Clocks of different machines disagree, so every time is the server's. No script removes a message from one place before
it is in another, and an error in the middle of one leaves nothing in neither.
Keys come with the `global_keyprefix` in front. Needs Redis 6.2 (`RPOP` with a count, `ZRANGE BYSCORE`).
"""

FETCH = r"""
-- Takes up to `limit` messages and notes each as unacknowledged.
-- KEYS: unacked, unacked index, record of this fetch, dead letters, then the queues of each priority.
-- ARGV: limit, number of queues, whether kombu rotates them, seconds that the record lives, number of this fetch, what
-- the keys of counters of losses begin with, queue names.
-- Returns whether the queues are empty now, how many messages have become dead letters, then number of queue, delivery
-- tag and message, of each.
local unacked, index, record, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local left, width, rotates, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1', tonumber(ARGV[4])
local sequence, counters = ARGV[5], ARGV[6]
local FIRST, NAMES = 5, 7  -- of the queues in KEYS, of their names in ARGV

-- The client has given this fetch up on another connection; who would hear the answer?
if ttl > 0 and redis.call('GET', record) == 'closed' then return {0, 0} end

local taken, problem = {}, nil  -- {place in KEYS, number of queue, message}
local function pop(place, count)
  -- What was taken before an error must not be lost for it.
  local got = redis.pcall('RPOP', KEYS[place], count)
  if type(got) ~= 'table' then return {} end
  if not got.err then return got end
  -- A key of another type is nobody's queue. Else the server refuses to give, which is not the same as to have nothing.
  if not string.find(got.err, 'WRONGTYPE', 1, true) then problem = got end
  return {}
end

if width == 1 then
  for place = FIRST, #KEYS do
    if left == 0 then break end
    for _, message in ipairs(pop(place, left)) do
      taken[#taken + 1] = {place, 1, message}
      left = left - 1
    end
  end
else
  -- As kombu does with one message at a time: the first queue that has one, which then goes to the end of the row.
  local row = {}
  for queue = 1, width do row[queue] = queue end
  for first = FIRST, #KEYS, width do
    if left == 0 then break end
    local has, wanted, turns = {}, {}, {}
    for queue = 1, width do
      local length = redis.pcall('LLEN', KEYS[first + queue - 1])
      has[queue] = type(length) == 'number' and length or 0
    end
    while left > 0 do
      local at
      for i = 1, width do
        if has[row[i]] > 0 then at = i break end
      end
      if not at then break end
      local queue = row[at]
      has[queue], wanted[queue] = has[queue] - 1, (wanted[queue] or 0) + 1
      turns[#turns + 1] = queue
      left = left - 1
      if rotates then table.insert(row, table.remove(row, at)) end
    end
    local got, next_of = {}, {}
    for queue, count in pairs(wanted) do
      got[queue], next_of[queue] = pop(first + queue - 1, count), 1
    end
    for _, queue in ipairs(turns) do
      local message = got[queue][next_of[queue]]
      next_of[queue] = next_of[queue] + 1
      if message then
        taken[#taken + 1] = {first + queue - 1, queue, message}
      else
        left = left + 1
      end
    end
  end
end
if problem and #taken == 0 then return problem end
-- A read: from now on the server tells a client that tracks keys when one of them changes. It comes after the last
-- removal, which would end that again.
if left > 0 then redis.call('EXISTS', unpack(KEYS, FIRST)) end
local answer = {left > 0 and not problem and 1 or 0, 0}
if #taken == 0 then return answer end

local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])

local KEY = '"delivery_tag"'
local function tag_of(message)
  -- One appearance outside of a string is the one; a parser is asked only where there are more.
  local _, stop = string.find(message, KEY, 1, true)
  if stop and not string.find(message, KEY, stop + 1, true) then
    local from, tag = string.match(message, '^%s*:%s*"()([^"\\%c]+)"', stop + 1)
    if tag then return tag, from end
  end
  local ok, envelope = pcall(cjson.decode, message)
  if not ok or type(envelope) ~= 'table' or type(envelope.properties) ~= 'table' then return nil end
  local tag = envelope.properties.delivery_tag
  if type(tag) == 'number' then tag = string.format('%.17g', tag) end
  if type(tag) == 'string' and tag ~= '' and not string.find(tag, '%c') then return tag end
end

local scores, tags = {}, {}
for i, it in ipairs(taken) do
  it[4], it[5] = tag_of(it[3])
  -- Was it lost with a worker before? Then maybe because of it: it comes alone, so that no neighbour is lost with it.
  if it[4] and string.find(it[3], '"redelivered": true', 1, true)
      and redis.call('EXISTS', counters .. it[4]) == 1 then
    while #taken > math.max(1, i - 1) do
      local last = table.remove(taken)
      redis.call('RPUSH', KEYS[last[1]], last[3])
      answer[1] = 0
    end
    if i > 1 then break end
  end
  if it[4] then
    tags[#tags + 1] = it[4]
    scores[2 * #tags - 1], scores[2 * #tags] = now, it[4]
  end
end

local function give_up(problem)
  -- The places for what is unacknowledged are unusable: everything goes back where it was.
  for i = #taken, 1, -1 do redis.call('RPUSH', KEYS[taken[i][1]], taken[i][3]) end
  return problem
end

local added = #tags > 0 and redis.pcall('ZADD', index, 'NX', unpack(scores)) or 0
if type(added) == 'table' then return give_up(added) end
if added < #tags then
  -- One message that was routed to two queues has one tag, with place for one. The second gets a new tag.
  local seen = {}
  for i, it in ipairs(taken) do
    local tag, from = it[4], it[5]
    if tag then
      if seen[tag] or redis.call('HEXISTS', unacked, tag) == 1 then
        if from then
          it[4] = tag .. '~' .. now .. '-' .. i
          it[3] = string.sub(it[3], 1, from - 1) .. it[4] .. string.sub(it[3], from + #tag)
          redis.call('ZADD', index, now, it[4])
        else
          redis.call('LPUSH', KEYS[it[1]], it[3])  -- it waits until the first is done
          it[4], it[6] = nil, true
        end
      else
        redis.call('ZADD', index, now, tag)
      end
      if it[4] then seen[it[4]] = true end
    end
  end
end

local entries, given = {}, {now}
for _, it in ipairs(taken) do
  local tag, queue = it[4], it[2]
  local name = ARGV[NAMES + queue - 1]
  if tag then
    entries[#entries + 1] = tag
    -- What a stock worker writes, but for the exchange: it goes back to the queue it came from, and to no other.
    entries[#entries + 1] = '[' .. it[3] .. ', "", ' .. cjson.encode(name) .. ']'
    given[#given + 1] = tag
    local n = #answer
    answer[n + 1], answer[n + 2], answer[n + 3] = queue, tag, it[3]
  elseif not it[6] then
    local why = 'no delivery tag can be read from it'
    local header = cjson.encode({at = now, queue = name, list = KEYS[it[1]], reason = why})
    redis.call('RPUSH', dead, header .. '\n' .. it[3])
    answer[2] = answer[2] + 1
  end
end
if #entries > 0 then
  local kept = redis.pcall('HSET', unacked, unpack(entries))
  if type(kept) == 'table' then
    redis.call('ZREM', index, unpack(given, 2))
    return give_up(kept)
  end
  -- Where the answer gets lost, the client asks for this list: what is on it nobody works on.
  if ttl > 0 then redis.call('SET', record, sequence .. '\n' .. table.concat(given, '\n'), 'EX', ttl) end
end
return answer
"""

CLOSE = r"""
-- KEYS: record of a fetch.  ARGV: seconds to remember that it is closed.
-- Returns the number of the last fetch that gave something, and what it gave, or false. A fetch that is still on its
-- way gives nothing any more.
local given = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], 'closed', 'EX', ARGV[1])
if given == 'closed' then return false end
return given
"""

RETURN = r"""
-- Ends deliveries: their messages go to other lists, all or nothing of each.
-- KEYS: unacked, unacked index, dead letters.
-- ARGV of each: delivery tag, its score or '' for any, key of its counter or '', limit of the counter, seconds that the
-- counter lives, header as a dead letter, number of places; of each place: command, key, message.
-- Returns how many ended, and how many of them are dead letters now.
local unacked, index, dead = KEYS[1], KEYS[2], KEYS[3]
local at, ended, buried = 1, 0, 0
while at <= #ARGV do
  local tag, score, counter, limit, ttl, header, places = unpack(ARGV, at, at + 6)
  local first, last = at + 7, at + 6 + 3 * tonumber(places)
  local found = redis.call('ZSCORE', index, tag)
  -- Meanwhile acknowledged, renewed or returned by somebody else: then it is no longer ours to return.
  if score == '' or (found and tonumber(found) == tonumber(score)) then
    if redis.call('HEXISTS', unacked, tag) == 1 then
      local count = 0
      if counter ~= '' then
        count = redis.call('INCR', counter)
        redis.call('EXPIRE', counter, ttl)
      end
      if last < first then
        -- It was seen without a message, and has one now.
        ended = ended - 1
      else
        if counter ~= '' and count >= tonumber(limit) then
          redis.call('RPUSH', dead, header .. '\n' .. ARGV[first + 2])
          redis.call('DEL', counter)
          buried = buried + 1
        else
          for place = first, last, 3 do
            if ARGV[place] == 'BURY' then
              redis.call('RPUSH', dead, header .. '\n' .. ARGV[place + 2])
              buried = buried + 1
            else
              redis.call(ARGV[place], ARGV[place + 1], ARGV[place + 2])
            end
          end
        end
        redis.call('HDEL', unacked, tag)
        redis.call('ZREM', index, tag)
      end
      ended = ended + 1
    elseif found then
      redis.call('ZREM', index, tag)
    end
  end
  at = last + 1
end
return {ended, buried}
"""

EXPIRED = r"""
-- KEYS: unacked, unacked index.  ARGV: visibility timeout in seconds, limit.
-- Returns tag, score and entry of the deliveries that nobody renewed for so long, oldest first.
local time = redis.call('TIME')
local last = string.format('%.6f', time[1] + time[2] / 1000000 - tonumber(ARGV[1]))
local found = redis.call('ZRANGE', KEYS[2], '-inf', last, 'BYSCORE', 'LIMIT', 0, ARGV[2], 'WITHSCORES')
local answer = {}
for i = 1, #found, 2 do
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3] = found[i], found[i + 1], redis.call('HGET', KEYS[1], found[i])
end
return answer
"""

RENEW = r"""
-- KEYS: unacked index.  ARGV: delivery tags. Returns those that are no longer there.
local time = redis.call('TIME')
local now, gone = time[1] .. '.' .. string.format('%06d', time[2]), {}
for _, tag in ipairs(ARGV) do
  if redis.call('ZADD', KEYS[1], 'XX', 'CH', now, tag) == 0 then gone[#gone + 1] = tag end
end
return gone
"""
