#!lua flags=allow-oom
-- Settle: end deliveries, each whole or not at all, with all that goes with them.
--
-- needs     common lanes leasing places fanout entries joins burial
-- keys      the queues, the store, joins and its sets, dead and what begins with it, and what publish reaches
-- request   time, version of the routes or false if none are used,
--           [queue, tokens] of plain acks: row and token of each, as one string,
--           [queue, row and token, writes, action, delay, failures or false, letter or false,
--            [route, entries]…, joins: each as `joins.lua` has it, then [route, entries]… and its number or false]
--           of each other outcome; of an ack that only writes, no more than these
-- answer    the rows and tokens of those that are lost, and the numbers of the joins whose emits were published; STALE,
--           and nothing done, where the version is not the newest, and MISPLACED where a key that is not ours holds
--           something else
--
-- Invariant: an outcome is applied if and only if its row is in `leases` under its token and its writes find the
-- versions they expect. Then the row leaves `leases`, what it emits is published and its joins are made, in this one
-- step.
--
-- It may exceed the server's memory limit: what is full is emptied by acks.

local TOKEN = 20
local lost, published_joins = {}, {}
local ended = {} -- queue -> rows and tokens of what is done there

local function finish(queue, rows)
  local ordered = call('EXISTS', queue .. ':lanes') == 1
  local elements = ordered and ask('HMGET', queue .. ':held', rows)
  count('HDEL', queue .. ':held', rows)
  if call('EXISTS', queue .. ':tries') == 1 then
    count('HDEL', queue .. ':tries', rows)
    count('HDEL', queue .. ':failures', rows)
  end
  for i, element in ipairs(elements or {}) do
    local lane = lane_of(element)
    if lane then quit(queue, lane, rows[i]) end
  end
end

local function finish_ended()
  for queue, tokens in pairs(ended) do
    local rows = {}
    for i, token in ipairs(tokens) do rows[i] = row_of(token) end
    count('ZREM', queue .. ':leases', tokens)
    finish(queue, rows)
  end
end

local function ack(queue, tokens)
  local all, kept, rows = {}, {}, {}
  for i = 1, #tokens, TOKEN do all[#all + 1] = string.sub(tokens, i, i + TOKEN - 1) end
  for i, until_ in ipairs(ask('ZMSCORE', queue .. ':leases', all)) do
    if until_ then
      kept[#kept + 1] = all[i]
      rows[#rows + 1] = row_of(all[i])
    else
      lost[#lost + 1] = all[i]
    end
  end
  count('ZREM', queue .. ':leases', kept)
  finish(queue, rows)
end

-- Which outcomes still have their lease; reads what they write over.
local function leased(outcomes)
  local tokens, keys, held = {}, {}, {}
  for _, outcome in ipairs(outcomes) do
    local queue, token, writes = outcome[1], outcome[2], outcome[3]
    tokens[queue] = tokens[queue] or {}
    table.insert(tokens[queue], token)
    for _, change in ipairs(writes) do keys[#keys + 1] = change[1] end
  end
  for queue, some in pairs(tokens) do
    for i, until_ in ipairs(ask('ZMSCORE', queue .. ':leases', some)) do held[some[i]] = until_ end
  end
  look_up(keys)
  return held
end

local function settle(outcome, held)
  local queue, token, writes, action, delay, failures, letter = unpack(outcome)
  local row = row_of(token)
  if not held or not write_all(writes) then
    lost[#lost + 1] = token
    return false
  end
  if action == 'retry' or action == 'release' then
    call('ZREM', queue .. ':leases', token)
    if action == 'retry' then
      call('HINCRBY', queue .. ':tries', row, 1)
      if failures then call('HSET', queue .. ':failures', row, failures) end
    end
    if block(queue, row, now + delay) then return true end
    call('ZADD', queue .. ':due', now + delay, row)
    if delay > 0 then tell(queue, now + delay) else wake(queue) end
    return true
  end
  if letter then
    local attempt = tonumber(call('HGET', queue .. ':tries', row) or 0) + 1
    bury(letter, queue, call('HGET', queue .. ':held', row), attempt)
  end
  ended[queue] = ended[queue] or {}
  table.insert(ended[queue], token)
  return true
end

local function emit(parts)
  for i = 1, #parts, 2 do fan_out(parts[i], parts[i + 1]) end
end

local function misplaced_in(parts)
  for i = 1, #parts, 2 do
    local wrong = misplaced(parts[i][4])
    if wrong then return wrong end
  end
end

if request[2] and stale(request[2]) then return redis.error_reply('STALE the routes have changed') end
for _, outcome in ipairs(request[4]) do
  local wrong = misplaced_in(outcome[8] or {})
  for _, joining in ipairs(outcome[9] or {}) do wrong = wrong or misplaced_in(joining[7]) end
  if wrong then return wrong end
end
for i = 1, #request[3], 2 do
  ack(request[3][i], request[3][i + 1])
end
local held = leased(request[4])
for _, outcome in ipairs(request[4]) do
  if settle(outcome, held[outcome[2]]) then
    emit(outcome[8] or {})
    for _, joining in ipairs(outcome[9] or {}) do
      if make(joining) then
        emit(joining[7])
        if joining[8] then published_joins[#published_joins + 1] = joining[8] end
      end
    end
  end
end
done_writing()
finish_ended()
return {lost, published_joins}
