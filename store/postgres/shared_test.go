package postgres

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nearkey/nearkey/internal/pgtest"
)

// shared is the server of the tests that do no harm to one. It ends with the
// process.
var shared = sync.OnceValue(func() *pgtest.Server { return pgtest.Start(process{}) })

// process is the owner of what ends with the process.
type process struct{}

func (process) Helper()                           {}
func (process) Cleanup(func())                    {}
func (process) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

var schemas atomic.Int64

// newURL is the URL of an empty schema of the shared server.
func newURL(t testing.TB) string {
	t.Helper()
	schema := fmt.Sprintf("test_%d", schemas.Add(1))
	shared().Exec("create schema " + schema)
	return shared().URL() + "&search_path=" + schema
}
