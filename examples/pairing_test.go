package examples_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/nearkey/nearkey/client"
	"github.com/nearkey/nearkey/internal/nearkeytest"
)

// round is a round of the example.
type round struct {
	Time   string
	Groups [][]string
}

// fair complains unless everybody is in one group, as small as it can be.
func (r round) fair(people []string) error {
	var all []string
	threes := 0
	for _, g := range r.Groups {
		all = append(all, g...)
		switch {
		case len(g) == 3:
			threes++
		case len(g) != 2 && len(people) > 1:
			return fmt.Errorf("%q is a group", g)
		}
	}
	slices.Sort(all)
	if !slices.Equal(all, people) {
		return fmt.Errorf("%q are drawn, want %q", all, people)
	}
	if len(people) > 1 && threes != len(people)%2 {
		return fmt.Errorf("%d groups of three", threes)
	}
	return nil
}

// meetings are all who meet each other, as "a b".
func (r round) meetings() map[string]bool {
	all := map[string]bool{}
	for _, g := range r.Groups {
		for i, a := range g {
			for _, b := range g[i+1:] {
				all[min(a, b)+" "+max(a, b)] = true
			}
		}
	}
	return all
}

// again is how many meet who met in another round.
func (r round) again(last round) (n int) {
	met := last.meetings()
	for m := range r.meetings() {
		if met[m] {
			n++
		}
	}
	return n
}

// TestPairing: in each round everybody has somebody, if possible somebody new.
func TestPairing(t *testing.T) {
	t.Parallel()
	p := deploy(t, "pairing")
	page := worker("pairing")
	page.get(t, "/").want(t, http.StatusNotFound, "")
	people := namespaceOf(t, "pairing-people")

	rounds := map[string]int{} // that everybody was in
	last, drawn := round{}, 0
	draw := func(names ...string) (now round) {
		t.Helper()
		setPeople(t, people, names)
		p.nearkey(t, "cron", "run", "pairing")
		drawn++
		nearkeytest.Eventually(t, "the round is shown", func() error {
			a := page.get(t, "/")
			if err := statusOf(a, http.StatusOK); err != nil {
				return err
			}
			if a.into(t, &now); now.Time == last.Time {
				return fmt.Errorf("it is %+v", now)
			}
			return nil
		})
		if err := now.fair(slices.Sorted(slices.Values(names))); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			rounds[name]++
		}
		return now
	}
	many := make([]string, 25)
	for i := range many {
		many[i] = fmt.Sprintf("person %d", i)
	}
	last = draw()
	for _, names := range [][]string{many, many, many[:24], many[:24], many[:4], many[:4], many[:7], many[:7]} {
		now := draw(names...)
		if n := now.again(last); n != 0 {
			t.Errorf("%d meet again:\n%q\n%q", n, last.Groups, now.Groups)
		}
		last = now
	}
	// Of five, two meet again at least, and not more.
	last = draw(many[:5]...)
	for range 5 {
		now := draw(many[:5]...)
		if n := now.again(last); n != 1 {
			t.Errorf("%d meet again, want 1:\n%q\n%q", n, last.Groups, now.Groups)
		}
		last = now
	}
	// Those who have no choice.
	for _, names := range [][]string{{"ada", "bob"}, {"ada", "bob"}, {"ada", "bob", "cem"}, {"ada"}} {
		last = draw(names...)
	}

	var counts []struct {
		Name     string
		Metadata struct {
			Rounds int
			Last   string
		}
	}
	page.get(t, "/counts").want(t, http.StatusOK, "").into(t, &counts)
	if len(counts) != len(rounds) {
		t.Errorf("%d people have a count, want %d", len(counts), len(rounds))
	}
	for _, c := range counts {
		if c.Metadata.Rounds != rounds[c.Name] {
			t.Errorf("%s was in %d rounds, want %d", c.Name, c.Metadata.Rounds, rounds[c.Name])
		}
	}
	var all []struct{ Name string }
	page.get(t, "/rounds").want(t, http.StatusOK, "").into(t, &all)
	if len(all) != drawn || all[len(all)-1].Name != last.Time {
		t.Errorf("%d rounds are %+v, want %d", len(all), all, drawn)
	}
	for _, k := range people.keys(t, "") {
		if expires := k.Expiration != 0; expires != strings.HasPrefix(k.Name, "round/") {
			t.Errorf("%s expires at %d", k.Name, k.Expiration)
		}
	}
	if history := p.nearkey(t, "cron", "history", "pairing"); !strings.Contains(history, "0 9 * * MON") {
		t.Errorf("the history does not name the trigger:\n%s", history)
	}
}

// setPeople makes these names those who take part.
func setPeople(t *testing.T, ns namespace, names []string) {
	t.Helper()
	for _, k := range ns.keys(t, "person/") {
		if !slices.Contains(names, strings.TrimPrefix(k.Name, "person/")) {
			check(t, shared.kv.Delete(t.Context(), ns.id, k.Name))
		}
	}
	var pairs []client.Pair
	for _, name := range names {
		pairs = append(pairs, client.Pair{Key: "person/" + name})
	}
	_, err := shared.kv.PutMany(t.Context(), ns.id, pairs)
	check(t, err)
}

// TestPairingRound: a round that is unfair is noticed.
func TestPairingRound(t *testing.T) {
	people := []string{"a", "b", "c", "d", "e"}
	for what, groups := range map[string][][]string{
		"somebody is missing":    {{"a", "b"}, {"c", "d"}},
		"somebody is alone":      {{"a", "b"}, {"c", "d"}, {"e"}},
		"somebody is in two":     {{"a", "b"}, {"c", "d", "a"}},
		"all are in one":         {{"a", "b", "c", "d", "e"}},
		"somebody is a stranger": {{"a", "b"}, {"c", "d", "f"}},
	} {
		if (round{"", groups}).fair(people) == nil {
			t.Errorf("%s, and nobody complains", what)
		}
	}
	if err := (round{"", [][]string{{"a", "d"}, {"c", "b", "e"}}}).fair(people); err != nil {
		t.Error(err)
	}
	if n := (round{"", [][]string{{"c", "a", "b"}}}).again(round{"", [][]string{{"b", "c"}, {"a", "d"}}}); n != 1 {
		t.Errorf("%d meet again, want 1", n)
	}
}
