package rest

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/nearkey/nearkey/catalog"
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
	case path == "assets/upload":
		r.kind = routeAssetsUpload
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

// otherProducts are products that Workers can be bound to and that are not served
// here, by what follows the account in their paths.
var otherProducts = map[string]string{
	"ai": "Workers AI", "ai-gateway": "AI Gateway", "browser-rendering": "Browser Rendering", "cloudchamber": "Containers",
	"containers": "Containers", "d1": "D1", "event_subscriptions": "Queues", "hyperdrive": "Hyperdrive", "images": "Images",
	"mtls_certificates": "mTLS certificates", "pipelines": "Pipelines", "queues": "Queues", "r2": "R2",
	"secrets_store": "Secrets Store", "stream": "Stream", "vectorize": "Vectorize", "workflows": "Workflows",
}

// otherProduct is the product at a path that has no route; empty if there is none.
func otherProduct(path string) string {
	path, ok := strings.CutPrefix(path, basePath+"/accounts/")
	if !ok {
		return ""
	}
	_, path, _ = strings.Cut(path, "/")
	head, _, _ := strings.Cut(path, "/")
	return otherProducts[head]
}

// noProduct is the answer at the path of a product that is not served here: wrangler
// looks there for what a Worker is to be bound to, and shows the text.
func noProduct(product string) error {
	return refuse(http.StatusNotFound, 7003, "This server has no %s. It runs Workers with bindings of type %s.", product, supportedBindings)
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
	e[routeScripts] = endpoint{get: reads("list scripts", (*Server).listScripts)}
	e[routeScript] = endpoint{
		get: reads("get script", (*Server).getScript),
		put: writes("put script", (*Server).putScript),
		del: writes("delete script", (*Server).deleteScript),
	}
	e[routeScriptContent] = endpoint{put: writes("put script content", (*Server).putContent), get: reads("get script content", (*Server).getContent)}
	e[routeScriptContentV2] = endpoint{get: reads("get script content", (*Server).getContent)}
	e[routeScriptSettings] = endpoint{
		get:   reads("get settings", (*Server).getSettings),
		patch: writes("patch settings", (*Server).patchSettings),
	}
	e[routeScriptOnlySettings] = endpoint{
		get:   reads("get script settings", (*Server).getOnlySettings),
		patch: writes("patch script settings", (*Server).patchOnlySettings),
	}
	e[routeScriptVersions] = endpoint{
		get:  reads("list versions", (*Server).listVersions),
		post: writes("post version", (*Server).postVersion),
	}
	e[routeScriptVersion] = endpoint{get: reads("get version", (*Server).getVersion)}
	e[routeScriptDeployments] = endpoint{
		get:  reads("list deployments", (*Server).listDeployments),
		post: writes("post deployment", (*Server).postDeployment),
	}
	e[routeScriptDeployment] = endpoint{get: reads("get deployment", (*Server).getDeployment)}
	e[routeScriptSecrets] = endpoint{
		get: reads("list secrets", (*Server).listSecrets),
		put: writes("put secret", (*Server).putSecret),
	}
	e[routeScriptSecret] = endpoint{
		get: reads("get secret", (*Server).getSecret),
		del: writes("delete secret", (*Server).deleteSecret),
	}
	e[routeScriptSecretsBulk] = endpoint{patch: writes("patch secrets", (*Server).patchSecrets)}
	e[routeScriptReferences] = endpoint{get: reads("get references", (*Server).getReferences)}
	e[routeScriptAssets] = endpoint{post: writes("begin upload of assets", (*Server).beginAssets)}
	e[routeAssetsUpload] = endpoint{post: &operation{name: "upload assets", serve: (*Server).uploadAssets}}
	e[routeWorkerService] = endpoint{
		get: reads("get service", (*Server).getService),
		del: writes("delete service", (*Server).deleteService),
	}
	e[routeWorkerObject] = endpoint{get: reads("get worker", (*Server).getWorkerObject)}
	e[routeWorkerLatest] = endpoint{patch: writes("patch latest version", (*Server).patchLatest)}
	e.addTriggers()
	e.addTails()
	e.addRuns()
}

// addTriggers adds the operations on what leads to Workers.
func (e *endpoints) addTriggers() {
	e[routeScriptSubdomain] = endpoint{
		get:  reads("get script subdomain", (*Server).getScriptSubdomain),
		post: writes("set script subdomain", (*Server).postScriptSubdomain),
		del:  writes("unset script subdomain", (*Server).deleteScriptSubdomain),
	}
	e[routeScriptRoutes] = endpoint{put: writes("put routes", (*Server).putScriptRoutes)}
	e[routeScriptDomainRecords] = endpoint{put: writes("put domains", (*Server).putScriptDomains)}
	e[routeScriptDomainChanges] = endpoint{post: reads("compare domains", (*Server).postDomainChanges)}
	e[routeScriptSchedules] = endpoint{
		get: reads("list schedules", (*Server).getSchedules),
		put: writes("put schedules", (*Server).putSchedules),
	}
	e[routeWorkersSubdomain] = endpoint{
		get: reads("get subdomain", (*Server).getSubdomain),
		put: writes("put subdomain", (*Server).putSubdomain),
	}
	e[routeWorkersSubdomainName] = endpoint{get: reads("find subdomain", (*Server).findSubdomain)}
	e[routeWorkersDomains] = endpoint{get: reads("list domains", (*Server).listDomains)}
	e[routeWorkersDomain] = endpoint{
		get: reads("get domain", (*Server).getDomain),
		del: writes("delete domain", (*Server).deleteDomain),
	}
	e[routeWorkersObjects] = endpoint{get: reads("list objects", (*Server).listNothing)}
	e[routeWorkersConsumers] = endpoint{get: reads("list consumers", (*Server).listNothing)}
	// A zone's account is not in the path: these check the right themselves.
	zone := func(name string, serve func(*Server, context.Context, *call) error) *operation {
		return &operation{name: name, access: accessAny, serve: serve}
	}
	e[routeZones] = endpoint{get: zone("list zones", (*Server).listZones), post: zone("create zone", (*Server).createZone)}
	e[routeZone] = endpoint{get: zone("get zone", (*Server).getZone), del: zone("delete zone", (*Server).deleteZone)}
	e[routeZoneRoutes] = endpoint{get: zone("list routes", (*Server).listZoneRoutes), post: zone("create route", (*Server).createZoneRoute)}
	e[routeZoneRoute] = endpoint{
		get: zone("get route", (*Server).getZoneRoute),
		put: zone("put route", (*Server).putZoneRoute),
		del: zone("delete route", (*Server).deleteZoneRoute),
	}
}

// reads and writes are operations on an account.
func reads(name string, serve func(*Server, context.Context, *call) error) *operation {
	return &operation{name, 0, accessAccount, catalog.Read, serve}
}

func writes(name string, serve func(*Server, context.Context, *call) error) *operation {
	return &operation{name, 0, accessAccount, catalog.Write, serve}
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
