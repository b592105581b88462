package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/nearkey/nearkey/catalog"
)

// Workers says what Workers stand on. Check and Keys must be set.
type Workers struct {
	// Check starts a version once on the real runtime, apart from everything. What
	// the runtime has against it is a *StartError; ErrNoRuntime says that there is
	// no runtime.
	Check func(ctx context.Context, w Bundle) (Started, error)
	Keys  *catalog.Keys // seals secrets

	Tails TailHub // where those are who follow Workers; nil: nobody can
	Fire  Fire    // fires a Worker's scheduled handler; nil: it cannot be

	Domain string // Workers answer at <name>.<subdomain>.<Domain>, which may have a port
	Scheme string // of that address; empty: http
}

// Bundle is a version of a Worker, whole: with the content of its modules and with
// its secrets as the Worker sees them.
type Bundle struct {
	AccountID, Name string
	Manifest        catalog.Manifest
	Modules         map[string][]byte // by name
	Secrets         map[string]string // by the name of the binding
}

// Started is what a version turned out to be when it was started.
type Started struct {
	Handlers, NamedHandlers []string
	Took                    time.Duration
}

// StartError is why a version does not start, in the words of the runtime.
type StartError struct{ Text string }

func (e *StartError) Error() string { return e.Text }

// ErrNoRuntime: no Worker can be started here.
var ErrNoRuntime = errors.New("the Workers runtime is not installed")

// Limits of what may be uploaded. Those of the catalog hold as well.
const (
	MaxScriptBytes     = 10 << 20 // compressed, all modules together
	MaxScriptFullBytes = 64 << 20 // as they are, all modules together
	MaxVariableBytes   = 5 << 10  // a variable or a secret

	// scriptFormBytes is the greatest body of an upload: headers of parts, metadata
	// and source maps come on top of the modules.
	scriptFormBytes = MaxScriptFullBytes + maxUploadMetadata + 16<<20
	// maxUploadMetadata is the greatest length of an upload's metadata.
	maxUploadMetadata = 1 << 20
	// conflictTries is how often a change of a Worker is tried that others are in
	// the way of.
	conflictTries = 10
	// maxChecks is how many versions are started at once to try them out.
	maxChecks = 4
)

// Codes of the endpoints of Workers.
const (
	codeSchedule        = 10005
	codeWorkerNotFound  = 10007
	codeRouteNotFound   = 10009
	codeWorkerName      = 10016
	codeStart           = 10021
	codeRoutePattern    = 10022
	codeScriptSize      = 10027
	codeSubdomainTaken  = 10031
	codeSubdomainFree   = 10032
	codeTooMany         = 10037
	codeNoNamespace     = 10041
	codeBadNamespace    = 10042
	codeBindingTaken    = 10053
	codeSecretNotFound  = 10056
	codeInherit         = 10057
	codeReferenced      = 10064
	codeNoHandlers      = 10068
	codeServiceNotFound = 10090
	codeNoService       = 10143
	codeShares          = 10210
	codeSettingsLatest  = 10214
	codeSecretLatest    = 10215
	codeVersionNotFound = 10222
	codeNoDeployment    = 10336
	codeRouteTaken      = 10020
	codeDomainTaken     = 100117
	codeDomainNotFound  = 100114
	codeZoneNotFound    = 7003
	codeZoneTaken       = 1061
)

// refuse is a failure whose message is all of text.
func refuse(status, code int, format string, args ...any) *failure {
	return &failure{status: status, code: code, text: fmt.Sprintf(format, args...), bare: true}
}

// badUpload is the answer to a version that can never start.
func badUpload(format string, args ...any) *failure {
	return refuse(http.StatusBadRequest, codeStart, format, args...)
}

var workerName = regexp.MustCompile(fmt.Sprintf(`^[a-z0-9_][a-z0-9_-]{0,%d}$`, catalog.MaxWorkerNameChars-1))

// newWorkerName is the name in the path of a Worker that is going to be.
func (c *call) newWorkerName() (string, error) {
	name := c.workerName()
	if !workerName.MatchString(name) {
		return "", refuse(http.StatusBadRequest, codeWorkerName,
			"Invalid script name '%s'. A name has 1 to %d lower-case letters, digits, dashes and underscores, and does not begin with a dash.",
			shown(name), catalog.MaxWorkerNameChars)
	}
	return name, nil
}

// workerFailure is the answer to what the catalog refuses of a request about
// Workers.
func workerFailure(err error) error {
	const notFound, bad = http.StatusNotFound, http.StatusBadRequest
	for _, known := range []struct {
		kind         error
		status, code int
		text         string // empty: the kind's own
	}{
		{catalog.ErrWorkerNotFound, notFound, codeWorkerNotFound, "This Worker does not exist on your account."},
		{catalog.ErrVersionNotFound, notFound, codeVersionNotFound, "The version could not be found. Please check its ID and try again."},
		{catalog.ErrShares, bad, codeShares, ""},
		{catalog.ErrWorkerName, bad, codeWorkerName, ""},
		{catalog.ErrSubdomainTaken, bad, codeSubdomainTaken, "This subdomain is taken. Please choose another one."},
		{catalog.ErrRouteNotFound, notFound, codeRouteNotFound, "The route could not be found."},
		{catalog.ErrRouteTaken, bad, codeRouteTaken, "A route with the same pattern already exists, of another Worker."},
		{catalog.ErrRoutePattern, bad, codeRoutePattern, ""},
		{catalog.ErrZoneNotFound, notFound, codeZoneNotFound, "The zone could not be found."},
		{catalog.ErrZoneTaken, bad, codeZoneTaken, "The zone exists in another account."},
		{catalog.ErrDomainNotFound, notFound, codeDomainNotFound, "The domain could not be found."},
		{catalog.ErrDomainTaken, bad, codeDomainTaken, "The domain belongs to another account."},
		{catalog.ErrTooManyWorkers, bad, codeTooMany, ""},
		{catalog.ErrTooManyRoutes, bad, codeTooMany, ""},
		{catalog.ErrTooManyZones, bad, codeTooMany, ""},
	} {
		if errors.Is(err, known.kind) {
			f := refuse(known.status, known.code, "%s", known.text)
			if known.text == "" {
				f.text = reason(err)
			}
			return f
		}
	}
	switch {
	case errors.Is(err, catalog.ErrConflict):
		return later(http.StatusServiceUnavailable, "The Worker is being changed by others. Please try again.", err)
	case errors.Is(err, catalog.ErrInvalid):
		return refuse(bad, codeInvalid, "%s", reason(err))
	}
	return err
}

func isNotFound(err error) bool { return errors.Is(err, catalog.ErrNotFound) }

// reason is what broke a rule, without what was being done.
func reason(err error) string {
	inner := errors.Unwrap(err)
	if inner == nil || inner == catalog.ErrInvalid {
		return err.Error()
	}
	return inner.Error()
}

// serviceFailure is workerFailure in the words of the endpoints of services.
func serviceFailure(err error) error {
	if errors.Is(err, catalog.ErrWorkerNotFound) {
		return refuse(http.StatusNotFound, codeServiceNotFound, "workers.api.error.service_not_found")
	}
	return workerFailure(err)
}

// sourceOf tells, as the API does, what a client is that makes a version.
func sourceOf(r *http.Request) string {
	for _, source := range []string{"wrangler", "terraform", "nearkey"} {
		if strings.HasPrefix(r.UserAgent(), source) {
			return source
		}
	}
	return "api"
}

// stampOf is a time as the API of Workers writes it.
func stampOf(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }

// retryConflicts runs a change that looks at a Worker first, until no other change
// comes between.
func retryConflicts(change func() error) error {
	for try := 1; ; try++ {
		if err := change(); !errors.Is(err, catalog.ErrConflict) || try == conflictTries {
			return err
		}
	}
}
