package workerd_test

import (
	"testing"

	"github.com/nearkey/nearkey/workerd"
)

// What was counted stays counted when a version is replaced or removed.
func TestTally(t *testing.T) {
	w := start(t, workerd.Options{})
	tally := &workerd.Tally{}
	for _, name := range []string{"one", "two"} {
		v := worker(name, "1", answering("r.url.endsWith('/throw') ? null.x : 'ok'"))
		v.Tally = tally
		w.deploy(v)
		w.want(name, "/", 200, "ok")
		w.want(name, "/throw", 500, "error code: 1101\n")
	}
	w.rt.Remove("one")
	w.rt.Remove("two")
	for _, c := range []workerd.Counts{tally.Counts(), w.rt.Totals()} {
		if c.Requests != 4 || c.Exceptions != 2 || c.Starts != 2 || c.Crashes != 0 {
			t.Errorf("%+v, want 4 requests, 2 exceptions and 2 starts", c)
		}
	}
	if all := w.rt.Statuses(); len(all) != 0 {
		t.Errorf("control: %+v is still there", all)
	}
}
