-- Messages on their way into queues and logs.
--
-- A route is {queues, ordered queues, log or false}: where the entries go. An entry is an element without the time it
-- was published, or, if there is more to say, {element, delay, mark or false, window}. A mark is what the message is
-- recognised by for `window` microseconds from now; the second one is dropped.
--
-- Invariant: an entry gets into every queue and the log of its route, or, by its mark, into none.

local function is_first(mark, window)
  local marks = base .. ':marks'
  local until_ = call('ZSCORE', marks, mark)
  if until_ and tonumber(until_) > now then return false end
  call('ZADD', marks, now + window, mark)
  count('ZREM', marks, call('ZRANGEBYSCORE', marks, '-inf', now, 'LIMIT', 0, 2)) -- a little more than came
  return true
end

-- `heard` is for `send`, where the route is someone else's place.
local function fan_out(route, entries, heard)
  if route[4] then return send(route[4], entries, heard) end
  local stamp = packed_time(now)
  local fresh, held, due, all = {}, {}, {}, {}
  local first_due = math.huge
  for i = 1, #entries do
    local entry = entries[i]
    if type(entry) == 'string' then
      local element = entry .. stamp
      fresh[#fresh + 1] = element
      all[#all + 1] = {element, now}
    elseif not entry[3] or is_first(entry[3], entry[4]) then
      local element, visible = entry[1] .. stamp, now + entry[2]
      all[#all + 1] = {element, visible}
      if visible > now then
        local row = row_of(element)
        held[#held + 1] = row
        held[#held + 1] = element
        due[#due + 1] = visible
        due[#due + 1] = row
        first_due = math.min(first_due, visible)
      else
        fresh[#fresh + 1] = element
      end
    end
  end
  if #all == 0 then return end
  for _, queue in ipairs(route[1]) do
    count('HSET', queue .. ':held', held)
    count('ZADD', queue .. ':due', due)
    local ends = #fresh > 0 and hand_over(queue, fresh)
    if #fresh == 0 or ends then
      tell(queue, math.min(ends or first_due, first_due))
    else
      count('RPUSH', queue .. ':ready', fresh)
      wake(queue)
    end
  end
  for _, queue in ipairs(route[2]) do
    for _, one in ipairs(all) do
      local row, lane = row_of(one[1]), lane_of(one[1])
      call('HSET', queue .. ':held', row, one[1])
      if lane then
        join(queue, lane, row, one[2])
      else
        call('ZADD', queue .. ':due', one[2], row)
      end
    end
    wake(queue)
  end
  if route[3] then
    local id = string.format('%d', math.floor(now / 1000)) .. '-*'
    for _, one in ipairs(all) do
      local due_at = string.format('%d', one[2])
      -- A clock that went back would give an id that is too small: then the log's own takes its place.
      if redis.pcall('XADD', route[3], id, 'element', one[1], 'due', due_at).err then
        call('XADD', route[3], '*', 'element', one[1], 'due', due_at)
      end
    end
  end
end
