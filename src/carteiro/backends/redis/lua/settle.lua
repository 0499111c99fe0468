#!lua flags=allow-oom
-- Settle: end deliveries, each whole or not at all, with all that goes with them.
--
-- needs     common lanes leasing places fanout entries burial
-- keys      the queues, the store, dead and what begins with it, and what publish reaches
-- request   time, version of the routes or false if none are used,
--           [queue, tokens] of plain acks: row and token of each, as one string,
--           [queue, row and token, action, delay, failures or false, letter or false, writes,
--            [route, entries]…] of each other outcome
-- answer    the rows and tokens of those that are lost; STALE, and nothing done, where the version is not the newest, and
--           MISPLACED where a key that is not ours holds something else
--
-- Invariant: an outcome is applied if and only if its row is in `leases` under its token and its writes find the
-- versions they expect. Then the row leaves `leases`, and what it emits is published, in this one step.
--
-- It may exceed the server's memory limit: what is full is emptied by acks.

local TOKEN = 20
local lost = {}

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

local function settle(outcome)
  local queue, token, action, delay, failures, letter, writes = unpack(outcome)
  local row = row_of(token)
  if not call('ZSCORE', queue .. ':leases', token) or not write_all(writes) then
    lost[#lost + 1] = token
    return false
  end
  call('ZREM', queue .. ':leases', token)
  if action == 'retry' or action == 'release' then
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
  finish(queue, {row})
  return true
end

if request[2] and stale(request[2]) then return redis.error_reply('STALE the routes have changed') end
for _, outcome in ipairs(request[4]) do
  for i = 1, #outcome[8], 2 do
    local wrong = misplaced(outcome[8][i][4])
    if wrong then return wrong end
  end
end
for i = 1, #request[3], 2 do
  ack(request[3][i], request[3][i + 1])
end
for _, outcome in ipairs(request[4]) do
  if settle(outcome) then
    local emits = outcome[8]
    for i = 1, #emits, 2 do fan_out(emits[i], emits[i + 1]) end
  end
end
return lost
