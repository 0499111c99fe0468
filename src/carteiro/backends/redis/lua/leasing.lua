-- Leasing rows, and handing them over.
--
-- What is published to a queue with nothing before it is leased to one of those who wait, in the same step, and pushed to
-- it: half of the way that a wake-up and a claim would take. The others stay as they are. They only have to look again
-- when that lease ends, and are told so if they would not do so anyway: a claim by each for each message, of which they
-- learned the same, kept a server with 50 idle workers eight times as busy.
--
-- Invariant: whoever waits looks again no later than anything becomes visible, or has been woken since.

-- Lease rows of a queue under a token. `fresh`, row and element of each, are those that are not in `held` yet. Returns
-- rows and records, each kind as one string.
local function lease_to(queue, token, until_, rows, elements, fresh)
  local leases, records, ending = {}, {}, as_text(until_)
  for n = 1, #rows do
    leases[2 * n - 1] = ending
    leases[2 * n] = rows[n] .. token
    records[n] = string.sub(elements[n], ROW + 1)
  end
  count('ZADD', queue .. ':leases', leases)
  count('HSET', queue .. ':held', fresh)
  return table.concat(rows), table.concat(records)
end

-- Let those who wait look again by then; at what they know, they look besides. A time that was told and is not past holds
-- for whoever began to wait after it, too: claims answer it.
local function tell(queue, at)
  local told = tonumber(call('HGET', base .. ':told', queue) or 0)
  if told > now and told <= at then return end
  call('HSET', base .. ':told', queue, string.format('%d', at))
  call('SPUBLISH', queue .. ':wake', string.format('%d', at - now))
end

local HANDFUL = 256 * 1024 -- bytes: what is pushed counts against a limit of the connection, so it is never much

local CANDIDATES = 4

-- Returns when the lease ends, if someone waits who can take all of these elements, and has them now.
local function hand_over(queue, elements)
  local waiting = queue .. ':waiting'
  local some = call('HRANDFIELD', waiting, CANDIDATES, 'WITHVALUES')
  if #some == 0 or call('EXISTS', queue .. ':ready') == 1 then return nil end
  local rows, fresh, size = {}, {}, 0
  for n, element in ipairs(elements) do
    rows[n] = row_of(element)
    fresh[2 * n - 1], fresh[2 * n] = rows[n], element
    size = size + #element
  end
  if size > HANDFUL then return nil end
  for i = 1, #some, 2 do
    local channel, token, room, lease = unpack(cmsgpack.unpack(some[i + 1]))
    if #elements <= room then
      call('HDEL', waiting, some[i])
      if call('PUBSUB', 'SHARDNUMSUB', channel)[2] > 0 then
        local row_text, record_text = lease_to(queue, token, now + lease, rows, elements, fresh)
        local head = struct.pack('>HI', #queue, #row_text) .. token .. queue
        call('SPUBLISH', channel, head .. row_text .. record_text)
        return now + lease
      end
    end
  end
end
