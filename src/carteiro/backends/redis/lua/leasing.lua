-- Leasing rows, and handing them over.
--
-- `waiting` HASH queue -> who waits for it: {channel, token, room, lease}, the last one to do so. What is published to a
-- queue with nothing before it is leased to that one in the same step, and pushed to it: half of the way that a wake-up
-- and a claim would take. Where the push reaches nobody, it is as if nobody waited.

-- Lease rows of a queue under a token. `fresh`, row and element of each, are those that are not in `held` yet. Returns
-- rows and records, each kind as one string.
local function lease_to(queue, token, until_, rows, elements, fresh)
  local leases, records = {}, {}
  for n = 1, #rows do
    leases[2 * n - 1] = until_
    leases[2 * n] = rows[n] .. token
    records[n] = string.sub(elements[n], ROW + 1)
  end
  count('ZADD', queue .. ':leases', leases)
  count('HSET', queue .. ':held', fresh)
  return table.concat(rows), table.concat(records)
end

local HANDFUL = 256 * 1024 -- bytes: what is pushed counts against a limit of the connection, so it is never much

-- Returns the channel of the one to whom these elements were handed over, if someone waits and can take them all.
local function hand_over(queue, elements)
  local waiting = base .. ':waiting'
  local entry = call('HGET', waiting, queue)
  if not entry then return nil end
  call('HDEL', waiting, queue)
  local channel, token, room, lease = unpack(cmsgpack.unpack(entry))
  if #elements > room or call('EXISTS', queue .. ':ready') == 1 then return nil end
  local rows, fresh, size = {}, {}, 0
  for n, element in ipairs(elements) do
    rows[n] = row_of(element)
    fresh[2 * n - 1], fresh[2 * n] = rows[n], element
    size = size + #element
  end
  if size > HANDFUL or call('PUBSUB', 'SHARDNUMSUB', channel)[2] == 0 then return nil end
  local row_text, record_text = lease_to(queue, token, now + lease, rows, elements, fresh)
  call('SPUBLISH', channel, struct.pack('>HI', #queue, #row_text) .. token .. queue .. row_text .. record_text)
  return channel
end
