#!lua flags=no-writes,allow-oom
-- Routes: who gets what.
--
-- needs     common routing
-- keys      meta, routes, retentions
-- request   time
-- answer    epoch and version, null if there are none, the routes and the retentions
--
-- Invariant: it changes nothing; all of it is of one version.

local meta = call('HMGET', base .. ':meta', 'epoch', 'version')
return {meta[1], meta[2], call('HGETALL', base .. ':routes'), call('HGETALL', base .. ':retentions')}
