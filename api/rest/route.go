package rest

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/nearkey/nearkey/catalog"
	"github.com/nearkey/nearkey/internal/observe"
)

// routeKind names a shape of path.
type routeKind uint8

const (
	routeHealth routeKind = iota
	routeReady
	routeMetrics
	routeUser
	routeVerify
	routeMemberships
	routeAccounts
	routeAccount
	routeTokens
	routeToken
	routeAccountVerify
	routeNamespaces
	routeNoNamespace // the collection with a slash behind it: an empty id
	routeNamespace
	routeKeys
	routeValue
	routeMetadata
	routeBulk
	routeBulkDelete
	routeBulkGet
	routeZones // what follows is there if Workers are: see worker_route.go
	routeZone
	routeZoneRoutes
	routeZoneRoute
	routeScripts
	routeScript
	routeScriptContent
	routeScriptContentV2
	routeScriptSettings
	routeScriptOnlySettings
	routeScriptVersions
	routeScriptVersion
	routeScriptDeployments
	routeScriptDeployment
	routeScriptSecrets
	routeScriptSecret
	routeScriptSecretsBulk
	routeScriptSubdomain
	routeScriptRoutes
	routeScriptDomainRecords
	routeScriptDomainChanges
	routeScriptSchedules
	routeScriptReferences
	routeScriptAssets
	routeAssetsUpload
	routeWorkerService
	routeWorkerObject
	routeWorkerLatest
	routeWorkersSubdomain
	routeWorkersSubdomainName
	routeWorkersDomains
	routeWorkersDomain
	routeWorkersObjects
	routeWorkersConsumers
	routeWorkerTails
	routeWorkerTail
	routeWorkerTailSocket
	routeWorkerTailEvents
	routeWorkerCronRun
	routeWorkerCronRuns
	routeKinds
)

func (k routeKind) String() string {
	return [routeKinds]string{
		"healthz", "readyz", "metrics", "user", "user/tokens/verify", "memberships", "accounts", "account",
		"tokens", "token", "tokens/verify", "namespaces", "namespaces/", "namespace", "keys", "values",
		"metadata", "bulk", "bulk/delete", "bulk/get",
		"zones", "zone", "zone/workers/routes", "zone/workers/route",
		"scripts", "script", "script/content", "script/content/v2", "script/settings", "script/script-settings",
		"script/versions", "script/version", "script/deployments", "script/deployment",
		"script/secrets", "script/secret", "script/secrets-bulk", "script/subdomain",
		"script/routes", "script/domains/records", "script/domains/changeset", "script/schedules",
		"script/references", "script/assets-upload-session", "assets/upload", "service", "worker", "worker/versions/latest",
		"subdomain", "subdomains", "domains", "domain", "durable_objects/namespaces", "tails/by-consumer",
		"script/tails", "script/tail", "script/tail/socket", "script/tail/events",
		"script/schedules/run", "script/schedules/runs",
	}[k]
}

// route is a path taken apart. The parts are as they were sent, not decoded.
type route struct {
	kind      routeKind
	account   string // 32 lower-case hexadecimal digits
	namespace string
	key       string
	token     string
	zone      string
	worker    string // the name of a Worker
	id        string // of what belongs to the Worker or the zone
}

// basePath is where the dialect begins.
const basePath = "/client/v4"

// sentPath is the path as the client sent it. URL.EscapedPath alone is not: it
// escapes anew what was sent with characters that Go would have escaped, and
// then %2F has become a slash.
func sentPath(u *url.URL) string {
	if u.RawPath != "" {
		return u.RawPath
	}
	return u.EscapedPath()
}

// parseRoute finds the route of an escaped path; false if there is none.
func parseRoute(path string) (route, bool) {
	switch path {
	case "/healthz":
		return route{kind: routeHealth}, true
	case "/readyz":
		return route{kind: routeReady}, true
	case "/metrics":
		return route{kind: routeMetrics}, true
	}
	rest, ok := strings.CutPrefix(path, basePath)
	if !ok || !strings.HasPrefix(rest, "/") {
		return route{}, false
	}
	// A base URL that ends in a slash makes two of them here.
	switch head, rest, more := strings.Cut(strings.TrimLeft(rest, "/"), "/"); {
	case head == "user" && !more:
		return route{kind: routeUser}, true
	case head == "user" && rest == "tokens/verify":
		return route{kind: routeVerify}, true
	case head == "memberships" && !more:
		return route{kind: routeMemberships}, true
	case head == "accounts" && !more:
		return route{kind: routeAccounts}, true
	case head == "accounts":
		return parseAccountRoute(rest)
	case head == "zones":
		return parseZoneRoute(rest, more)
	}
	return route{}, false
}

func parseAccountRoute(path string) (route, bool) {
	account, rest, more := strings.Cut(path, "/")
	if !isHexID(account) {
		return route{}, false
	}
	r := route{account: strings.ToLower(account)}
	if !more {
		r.kind = routeAccount
		return r, true
	}
	switch token, isToken := strings.CutPrefix(rest, "tokens/"); {
	case rest == "tokens":
		r.kind = routeTokens
		return r, true
	case rest == "tokens/verify":
		r.kind = routeAccountVerify
		return r, true
	case isToken && token != "" && !strings.Contains(token, "/"):
		r.kind, r.token = routeToken, token
		return r, true
	}
	spaces, ok := strings.CutPrefix(rest, "storage/kv/namespaces")
	if !ok {
		spaces, ok = strings.CutPrefix(rest, "workers/namespaces") // the older spelling
	}
	switch {
	case !ok:
		return parseWorkersRoute(r, rest)
	case spaces == "":
		r.kind = routeNamespaces
		return r, true
	case spaces == "/":
		r.kind = routeNoNamespace
		return r, true
	case spaces[0] != '/':
		return route{}, false
	}
	return parseNamespaceRoute(r, spaces[1:])
}

// parseNamespaceRoute goes on after …/namespaces/. An empty key has no route, nor
// has a namespace with a slash behind it: clients turn the keys "", "." and ".."
// into such paths, and the last must not rename the namespace.
func parseNamespaceRoute(r route, path string) (route, bool) {
	namespace, rest, more := strings.Cut(path, "/")
	if namespace == "" {
		return route{}, false
	}
	r.namespace = namespace
	if !more {
		r.kind = routeNamespace
		return r, true
	}
	what, tail, more := strings.Cut(rest, "/")
	switch {
	case what == "values" && tail != "":
		r.kind, r.key = routeValue, tail
	case what == "metadata" && tail != "":
		r.kind, r.key = routeMetadata, tail
	case what == "keys" && !more:
		r.kind = routeKeys
	case what == "bulk" && !more:
		r.kind = routeBulk
	case what == "bulk" && tail == "delete":
		r.kind = routeBulkDelete
	case what == "bulk" && tail == "get":
		r.kind = routeBulkGet
	default:
		return route{}, false
	}
	return r, true
}

// isHexID reports whether s has the shape of an account id.
func isHexID(s string) bool {
	if len(s) != 32 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// operation is what a method does at a route.
type operation struct {
	name       string // as error messages call it
	metric     observe.Op
	access     access
	permission catalog.Permission
	serve      func(*Server, context.Context, *call) error
}

// endpoint is a route's operations by method. HEAD is served as GET; net/http
// leaves the body out.
type endpoint struct{ get, put, post, patch, del *operation }

type endpoints [routeKinds]endpoint

func newEndpoints() endpoints {
	const read, write = catalog.Read, catalog.Write
	bulkDelete := &operation{"bulk remove keys", observe.OpBulkDelete, accessNamespace, write, (*Server).deleteBulk}
	all := endpoints{
		routeHealth:        {get: &operation{name: "healthz", serve: (*Server).getHealth}},
		routeReady:         {get: &operation{name: "readyz", serve: (*Server).getReady}},
		routeMetrics:       {get: &operation{name: "metrics", serve: (*Server).getMetrics}},
		routeUser:          {get: &operation{"get user", 0, accessAny, read, (*Server).getUser}},
		routeVerify:        {get: &operation{"verify token", 0, accessAny, read, (*Server).verifyToken}},
		routeMemberships:   {get: &operation{"list memberships", 0, accessAny, read, (*Server).listMemberships}},
		routeAccounts:      {get: &operation{"list accounts", 0, accessAny, read, (*Server).listAccounts}},
		routeAccount:       {get: &operation{"get account", 0, accessSeen, read, (*Server).getAccount}},
		routeAccountVerify: {get: &operation{"verify token", 0, accessSeen, read, (*Server).verifyToken}},
		routeTokens: {
			get:  &operation{"list tokens", 0, accessAccount, write, (*Server).listTokens},
			post: &operation{"create token", 0, accessAccount, write, (*Server).createToken},
		},
		routeToken: {
			get: &operation{"get token", 0, accessAccount, write, (*Server).getToken},
			del: &operation{"delete token", 0, accessAccount, write, (*Server).deleteToken},
		},
		routeNamespaces: {
			get:  &operation{"list namespaces", 0, accessSeen, read, (*Server).listNamespaces},
			post: &operation{"create namespace", 0, accessAccount, write, (*Server).createNamespace},
		},
		routeNamespace: {
			get: &operation{"get namespace", 0, accessNamespace, read, (*Server).getNamespace},
			put: &operation{"rename namespace", 0, accessWhole, write, (*Server).renameNamespace},
			del: &operation{"remove namespace", 0, accessWhole, write, (*Server).deleteNamespace},
		},
		routeKeys: {get: &operation{"list keys", observe.OpList, accessNamespace, read, (*Server).listKeys}},
		routeValue: {
			get: &operation{"get", observe.OpGet, accessKey, read, (*Server).getValue},
			put: &operation{"put", observe.OpPut, accessKey, write, (*Server).putValue},
			del: &operation{"remove key", observe.OpDelete, accessKey, write, (*Server).deleteValue},
		},
		routeMetadata: {get: &operation{"get", observe.OpMetadata, accessKey, read, (*Server).getMetadata}},
		routeBulk: {
			put: &operation{"bulk put keys", observe.OpBulkPut, accessNamespace, write, (*Server).putBulk},
			del: bulkDelete,
		},
		routeBulkDelete: {post: bulkDelete},
		routeBulkGet:    {post: &operation{"bulk get keys", observe.OpBulkGet, accessNamespace, read, (*Server).getBulk}},
	}
	all.addWorkers()
	return all
}

func (e *endpoint) operation(method string) *operation {
	switch method {
	case http.MethodGet, http.MethodHead:
		return e.get
	case http.MethodPut:
		return e.put
	case http.MethodPost:
		return e.post
	case http.MethodPatch:
		return e.patch
	case http.MethodDelete:
		return e.del
	}
	return nil
}

// notAllowed is the answer to a method that the route does not know.
func (e *endpoint) notAllowed(c *call) error {
	method := c.r.Method
	switch c.route.kind {
	case routeNamespaces, routeNoNamespace:
		if method == http.MethodDelete { // an empty id; wrangler looks for "not allowed"
			return &failure{status: http.StatusMethodNotAllowed, code: 10405, text: "DELETE method not allowed for the api_token authentication scheme"}
		}
	}
	var allowed []string
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPut, http.MethodPost, http.MethodPatch, http.MethodDelete} {
		if e.operation(m) != nil {
			allowed = append(allowed, m)
		}
	}
	if allowed == nil {
		return noRoute(sentPath(c.r.URL))
	}
	c.w.Header().Set("Allow", strings.Join(allowed, ", "))
	return &failure{status: http.StatusMethodNotAllowed, code: 7001, text: shown(method) + " not supported for requested URI."}
}

// decodeKey decodes the key of a path, once.
func decodeKey(escaped string) (string, error) {
	key, err := url.PathUnescape(escaped)
	if err != nil {
		return "", &failure{status: http.StatusBadRequest, code: codeInvalid, text: "Could not URL-decode key name"}
	}
	return key, nil
}

// parameter returns the first value of a parameter of a query string; "" if it is
// absent. Only "&" separates parameters, and unlike url.ParseQuery it does not
// drop what it cannot decode: a lost prefix would list, or delete, everything.
func parameter(query, name string) (string, error) {
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		key, value, _ := strings.Cut(pair, "=")
		if key != name {
			if decoded, err := url.QueryUnescape(key); err != nil || decoded != name {
				continue
			}
		}
		decoded, err := url.QueryUnescape(value)
		if err != nil {
			return "", &failure{status: http.StatusBadRequest, code: codeInvalid, text: "Could not URL-decode the query parameter " + name}
		}
		return decoded, nil
	}
	return "", nil
}
