#!lua flags=no-writes,allow-oom
-- Routes: who gets what.
--
-- needs     common routing
-- request   time
-- answer    epoch and version, null if there are none, the routes and the retentions

local meta = call('HMGET', base .. ':meta', 'epoch', 'version')
return {meta[1], meta[2], call('HGETALL', base .. ':routes'), call('HGETALL', base .. ':retentions')}
