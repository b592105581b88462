package admin

import (
	"net/http"
	"slices"
	"time"
)

// Shards are the clusters among which the keys of a provider are divided.
type Shards interface {
	// Table returns where keys are, and which are on the move.
	Table() Table
	// Change makes one of the changes of shards; see ShardsRequest. An error of no
	// other kind means that it cannot be done as things are.
	Change(change string, r ShardsRequest) error
}

// The changes of shards.
const (
	ChangeMove      = "move"      // a slot to a cluster
	ChangeDrain     = "drain"     // all slots away from a cluster
	ChangeRebalance = "rebalance" // slots to where the weights of the clusters propose
	ChangeSpread    = "spread"    // a namespace over several slots
)

var shardsChanges = []string{ChangeMove, ChangeDrain, ChangeRebalance, ChangeSpread}

// Table is where the keys of a provider are.
type Table struct {
	Provider string    `json:"provider"`
	Epoch    uint64    `json:"epoch"` // of the table; grows with each change
	Slots    int       `json:"slots"`
	Refusal  string    `json:"refusal,omitempty"` // why nothing is served any more
	Clusters []Cluster `json:"clusters"`
	Moves    []Move    `json:"moves"`
	Spread   []Spread  `json:"spread,omitempty"`
}

// Cluster is one of the clusters of a provider.
type Cluster struct {
	Name    string    `json:"name"`
	Weight  float64   `json:"weight"`
	Slots   int       `json:"slots"`
	Arrives int       `json:"arrives"` // slots that are to come
	Leaves  int       `json:"leaves"`  // slots that are to go
	Up      bool      `json:"up"`
	Since   time.Time `json:"since"`
	Error   string    `json:"error,omitempty"`
}

// Move is a slot or a namespace on the move.
type Move struct {
	Slot        int       `json:"slot"`                // -1: a namespace is spread
	Namespace   string    `json:"namespace,omitempty"` // that is being spread; empty: a slot is moved
	From        string    `json:"from"`                // cluster, or number of buckets
	To          string    `json:"to"`
	Phase       string    `json:"phase"`
	Since       time.Time `json:"since"` // of the phase
	Running     bool      `json:"running"`
	Copied      int64     `json:"copied"`      // records
	Compared    int64     `json:"compared"`    // that were found equal
	Differences int64     `json:"differences"` // that were not, and were copied again
	Removed     int64     `json:"removed"`     // from where they no longer live
	Error       string    `json:"error,omitempty"`
}

// Spread is a namespace whose keys are in several slots.
type Spread struct {
	Namespace string `json:"namespace"`
	Buckets   int    `json:"buckets"`
}

// ShardsRequest is the body of POST /shards/PROVIDER/CHANGE.
type ShardsRequest struct {
	Slot      *int   `json:"slot,omitempty"`      // of a move
	To        string `json:"to,omitempty"`        // of a move: the cluster
	Cluster   string `json:"cluster,omitempty"`   // of a drain
	Namespace string `json:"namespace,omitempty"` // to be spread
	Bits      *int   `json:"bits,omitempty"`      // of a spread: over 2^bits buckets
}

// errNoShards: nothing is divided here.
var errNoShards = notFound("no provider of this server has clusters of its own; ask the process of the role proxy that has them")

func (h *Handler) getShards(w http.ResponseWriter, _ *http.Request) error {
	if len(h.config.Shards) == 0 {
		return errNoShards
	}
	names := make([]string, 0, len(h.config.Shards))
	for name := range h.config.Shards {
		names = append(names, name)
	}
	slices.Sort(names)
	tables := make([]Table, len(names))
	for i, name := range names {
		tables[i] = h.config.Shards[name].Table()
		tables[i].Provider = name
	}
	h.Answer(w, tables)
	return nil
}

func (h *Handler) changeShards(w http.ResponseWriter, r *http.Request) error {
	name, change := r.PathValue("provider"), r.PathValue("change")
	shards, ok := h.config.Shards[name]
	switch {
	case len(h.config.Shards) == 0:
		return errNoShards
	case !ok:
		return notFound("there is no provider %q with clusters of its own here", name)
	case !slices.Contains(shardsChanges, change):
		return notFound("shards cannot be told to %s", change)
	}
	var asked ShardsRequest
	if err := read(w, r, &asked); err != nil {
		return err
	}
	if err := asked.check(change, shards.Table()); err != nil {
		return err
	}
	if err := shards.Change(change, asked); err != nil {
		return Refused(err)
	}
	h.config.Logger.WarnContext(r.Context(), "admin: shards were changed", "provider", name, "change", change)
	table := shards.Table()
	table.Provider = name
	h.Answer(w, table)
	return nil
}

// check refuses a request that lacks what the change needs.
func (r *ShardsRequest) check(change string, table Table) error {
	known := func(cluster string) error {
		if slices.ContainsFunc(table.Clusters, func(c Cluster) bool { return c.Name == cluster }) {
			return nil
		}
		return notFound("there is no cluster %q", cluster)
	}
	switch change {
	case ChangeMove:
		if r.Slot == nil || r.To == "" {
			return invalid("which slot is to be moved, and to which cluster?")
		}
		return known(r.To)
	case ChangeDrain:
		return known(r.Cluster)
	case ChangeSpread:
		if r.Bits == nil {
			return invalid("over how many buckets? Over 2 to the power of bits")
		}
		_, err := parseNamespace(r.Namespace)
		return err
	}
	return nil
}
