package workerd_test

import (
	"testing"
	"time"

	"github.com/nearkey/nearkey/workerd"
)

// A new project has the date of the day it was made, which is later than that of any
// runtime: it runs by the newest date that the runtime takes.
func TestDateOfToday(t *testing.T) {
	w := start(t, workerd.Options{})
	v := worker("a", "1", answering(`"today"`))
	v.CompatibilityDate = time.Now().UTC().Format(time.DateOnly)
	v.Flags = []string{"nodejs_compat"}
	if _, err := w.rt.Check(t.Context(), v); err != nil {
		t.Fatalf("%s is refused: %v", v.CompatibilityDate, err)
	}
	w.deploy(v)
	w.want("a", "/", 200, "today")
}
