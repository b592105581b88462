package rest

import (
	"net/url"
	"strings"
)

// scriptRoutes are what follows scripts/{name}/ in a path, where nothing follows that.
var scriptRoutes = map[string]routeKind{
	"content":               routeScriptContent,
	"content/v2":            routeScriptContentV2,
	"settings":              routeScriptSettings,
	"script-settings":       routeScriptOnlySettings,
	"versions":              routeScriptVersions,
	"deployments":           routeScriptDeployments,
	"secrets":               routeScriptSecrets,
	"secrets-bulk":          routeScriptSecretsBulk,
	"subdomain":             routeScriptSubdomain,
	"routes":                routeScriptRoutes,
	"domains/records":       routeScriptDomainRecords,
	"domains/changeset":     routeScriptDomainChanges,
	"schedules":             routeScriptSchedules,
	"schedules/run":         routeWorkerCronRun,
	"schedules/runs":        routeWorkerCronRuns,
	"references":            routeScriptReferences,
	"assets-upload-session": routeScriptAssets,
	"tails":                 routeWorkerTails,
}

// scriptItemRoutes are those where an id follows.
var scriptItemRoutes = map[string]routeKind{
	"versions":    routeScriptVersion,
	"deployments": routeScriptDeployment,
	"secrets":     routeScriptSecret,
	"tails":       routeWorkerTail,
}

// parseWorkersRoute goes on after /accounts/{acc}/.
func parseWorkersRoute(r route, path string) (route, bool) {
	path, ok := strings.CutPrefix(path, "workers/")
	if !ok {
		return route{}, false
	}
	head, rest, more := strings.Cut(path, "/")
	first, tail, deeper := strings.Cut(rest, "/")
	switch {
	case path == "scripts":
		r.kind = routeScripts
	case head == "scripts" && first != "":
		r.worker = first
		return parseScriptRoute(r, tail, deeper)
	case head == "services" && first != "" && !deeper:
		r.kind, r.worker = routeWorkerService, first
	case head == "workers" && first != "" && !deeper:
		r.kind, r.worker = routeWorkerObject, first
	case head == "workers" && first != "" && tail == "versions/latest":
		r.kind, r.worker = routeWorkerLatest, first
	case head == "subdomain" && !more:
		r.kind = routeWorkersSubdomain
	case head == "subdomains" && first != "" && !deeper:
		r.kind, r.id = routeWorkersSubdomainName, first
	case head == "domains" && !more, path == "domains/records":
		r.kind = routeWorkersDomains
	case head == "domains" && first == "records" && tail != "":
		r.kind, r.id = routeWorkersDomain, tail
	case head == "domains" && first != "" && !deeper:
		r.kind, r.id = routeWorkersDomain, first
	case path == "durable_objects/namespaces":
		r.kind = routeWorkersObjects
	case head == "tails" && first == "by-consumer" && tail != "":
		r.kind, r.worker = routeWorkersConsumers, tail
	default:
		return route{}, false
	}
	return r, true
}

// parseScriptRoute goes on after …/scripts/{name}.
func parseScriptRoute(r route, path string, more bool) (route, bool) {
	if !more {
		r.kind = routeScript
		return r, true
	}
	kind, ok := scriptRoutes[path]
	if ok {
		r.kind = kind
		return r, true
	}
	head, item, _ := strings.Cut(path, "/")
	if kind, ok = scriptItemRoutes[head]; !ok || item == "" {
		return route{}, false
	}
	r.kind = kind
	var deeper string
	r.id, deeper, _ = strings.Cut(item, "/")
	switch {
	case deeper == "":
		return r, r.id == item
	case kind == routeWorkerTail && deeper == "socket":
		r.kind = routeWorkerTailSocket
	case kind == routeWorkerTail && deeper == "events":
		r.kind = routeWorkerTailEvents
	default:
		return route{}, false
	}
	return r, true
}

// parseZoneRoute goes on after /zones.
func parseZoneRoute(path string, more bool) (route, bool) {
	zone, rest, deeper := strings.Cut(path, "/")
	switch {
	case !more:
		return route{kind: routeZones}, true
	case !isHexID(zone):
		return route{}, false
	}
	r := route{zone: strings.ToLower(zone)}
	id, isRoute := strings.CutPrefix(rest, "workers/routes/")
	switch {
	case !deeper:
		r.kind = routeZone
	case rest == "workers/routes":
		r.kind = routeZoneRoutes
	case isRoute && id != "" && !strings.Contains(id, "/"):
		r.kind, r.id = routeZoneRoute, id
	default:
		return route{}, false
	}
	return r, true
}

// ofWorkers reports whether the route is about Workers.
func (k routeKind) ofWorkers() bool { return k >= routeZones && k < routeKinds }

// addWorkers adds the operations on Workers. Those on tails are in worker_tails.go,
// those on runs of crons in worker_cron.go.
func (e *endpoints) addWorkers() {
}

// workerName is the name of the Worker in the path. A name that no Worker can have
// is not an error here: there is no such Worker.
func (c *call) workerName() string { return unescaped(c.route.worker) }

// itemID is the id in the path of what belongs to a Worker.
func (c *call) itemID() string { return unescaped(c.route.id) }

// unescaped is a part of a path, decoded. What cannot be decoded stays as it is,
// and then is the name of nothing.
func unescaped(part string) string {
	if text, err := url.PathUnescape(part); err == nil {
		return text
	}
	return part
}
