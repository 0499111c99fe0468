-- Who gets what: `meta` HASH of the version, another at each change, and the epoch, another if all was lost;
-- `routes` HASH queue -> [topic, group, ordered, ephemeral] as the client wrote it; `retentions` HASH topic -> how long
-- its log is kept; `ephemeral` ZSET queue -> until when its process is known to live.

local function changed(version)
  call('HSET', base .. ':meta', 'version', version)
  call('SPUBLISH', base .. ':changed', version)
end

local function remove(queue)
  for _, key in ipairs({':ready', ':due', ':leases', ':held', ':tries', ':failures', ':lanes'}) do
    call('UNLINK', queue .. key)
  end
  call('SREM', base .. ':armed', queue)
  call('HDEL', base .. ':waiting', queue)
  call('ZREM', base .. ':ephemeral', queue)
  return call('HDEL', base .. ':routes', queue) == 1
end
