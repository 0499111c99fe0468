-- Who gets what: `meta` HASH of the version, another at each change, and the epoch, another if all was lost;
-- `routes` HASH queue -> [topic, group, ordered, ephemeral] as the client wrote it; `retentions` HASH topic -> how long
-- its log is kept; `ephemeral` ZSET queue -> until when its process is known to live; `removed` HASH queue -> when an
-- operator removed it, for a day. `meta` also has the time of anyone's last beat.
--
-- Invariant: whoever changes `routes` or `retentions` changes the version in the same step.

local function changed(version)
  call('HSET', base .. ':meta', 'version', version)
  call('SPUBLISH', base .. ':changed', version)
end

local function remove(queue)
  for _, key in ipairs({':ready', ':due', ':leases', ':held', ':tries', ':failures', ':lanes', ':waiting'}) do
    call('UNLINK', queue .. key)
  end
  call('SREM', base .. ':armed', queue)
  call('HDEL', base .. ':told', queue)
  call('ZREM', base .. ':ephemeral', queue)
  return call('HDEL', base .. ':routes', queue) == 1
end

-- Consumers have gone: [consumer and queue].
local function leave(consumers)
  count('ZREM', base .. ':consumers', consumers)
  for _, one in ipairs(consumers) do
    local consumer, queue = string.match(one, '^(%S+) (.+)$')
    call('HDEL', queue .. ':waiting', consumer)
  end
end

-- Of the queues that a process declares, those to be made, and the names of those that stay away: it restores what the
-- server has lost, not what an operator removed. That comes back when a process begins.
local function to_make(declared, restoring)
  if not restoring then
    for _, one in ipairs(declared) do call('HDEL', base .. ':removed', one[1]) end
    return declared, {}
  end
  local made, away = {}, {}
  for _, one in ipairs(declared) do
    if call('HEXISTS', base .. ':removed', one[1]) == 1 then
      away[#away + 1] = one[1]
    else
      made[#made + 1] = one
    end
  end
  return made, away
end
