package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

func (m *Main) shardsCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "shards",
		Short: "See where the keys of a provider are, and move them",
		Long: `See among which clusters the keys of a provider are divided, and move them, while
the provider serves. Keys fall into 4,096 slots, and each slot is in one cluster. A
move copies a slot, compares both sides, and only then has it read from the new
place; each step goes on after a restart.

Ask the process that has the clusters: a centre, or a process of the role proxy
(--data names its data directory).`,
		Example: `  nearkey shards status
  nearkey shards rebalance --provider a     # after a cluster was added
  nearkey shards drain a1 --provider a      # before a cluster is taken away`,
	})
	cmd.AddCommand(m.shardsStatusCommand(), m.shardsMoveCommand(), m.shardsDrainCommand(), m.shardsRebalanceCommand(), m.shardsSpreadCommand())
	return cmd
}

// shardsFlags are the flags of the commands about shards.
type shardsFlags struct {
	connection
	provider string
	asJSON   bool
	noWait   bool
}

func (f *shardsFlags) flags(cmd *cobra.Command, changes bool) {
	f.connection.flags(cmd)
	jsonFlag(cmd, &f.asJSON)
	cmd.Flags().StringVar(&f.provider, "provider", "", "`NAME` of the provider, if there are several")
	if changes {
		cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "do not wait until everything has moved")
	}
}

func (m *Main) tables(ctx context.Context, cl *client.Client) (tables []admin.Table, err error) {
	if err := cl.Admin(ctx, http.MethodGet, "/shards", nil, &tables); err != nil {
		return nil, fmt.Errorf("ask for the shards: %w", err)
	}
	return tables, nil
}

// only returns the table of the provider that was named, or the only one.
func (f *shardsFlags) only(tables []admin.Table) (admin.Table, error) {
	var names []string
	for _, t := range tables {
		if t.Provider == f.provider || f.provider == "" && len(tables) == 1 {
			return t, nil
		}
		names = append(names, t.Provider)
	}
	if f.provider == "" {
		return admin.Table{}, usagef("which provider? Name it with --provider: %s", strings.Join(names, " or "))
	}
	return admin.Table{}, &exitError{exitNotFound, fmt.Errorf("there is no provider %q with clusters here%s", f.provider, didYouMean(f.provider, names))}
}

func (m *Main) shardsStatusCommand() *cobra.Command {
	var f shardsFlags
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the clusters and what is on the move",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.administrate(f.connection)
			if err != nil {
				return err
			}
			tables, err := m.tables(cmd.Context(), cl)
			if err != nil {
				return err
			}
			if f.provider != "" {
				t, err := f.only(tables)
				if err != nil {
					return err
				}
				tables = []admin.Table{t}
			}
			if f.asJSON {
				return m.printJSON(tables)
			}
			return m.printTables(tables)
		},
	}
	f.flags(cmd, false)
	return cmd
}

// mostMovesShown bounds the moves that are shown one by one.
const mostMovesShown = 10

func (m *Main) printTables(tables []admin.Table) error {
	rows := m.rows(false, "PROVIDER", "CLUSTER", "WEIGHT", "SLOTS", "TO COME", "TO GO", "UP", "SINCE", "ERROR")
	for _, t := range tables {
		for _, c := range t.Clusters {
			err := rows.add(nil, t.Provider, c.Name, strconv.FormatFloat(c.Weight, 'g', 4, 64), strconv.Itoa(c.Slots), strconv.Itoa(c.Arrives), strconv.Itoa(c.Leaves),
				yesNo(c.Up), ago(c.Since), firstNonEmpty(c.Error, "-"))
			if err != nil {
				return err
			}
		}
	}
	if err := rows.close(); err != nil {
		return err
	}
	for _, t := range tables {
		if t.Refusal != "" {
			m.say("%s serves nothing: %s", t.Provider, t.Refusal)
		}
		for _, s := range t.Spread {
			m.say("%s: namespace %s is spread over %s", t.Provider, s.Namespace, plural(int64(s.Buckets), "bucket"))
		}
		m.printMoves(t)
	}
	return nil
}

// printMoves tells what is on the move, what is being worked on first.
func (m *Main) printMoves(t admin.Table) {
	if len(t.Moves) == 0 {
		return
	}
	phases := map[string]int{}
	for _, move := range t.Moves {
		phases[move.Phase]++
	}
	var texts []string
	for _, phase := range sortedKeys(phases) {
		texts = append(texts, fmt.Sprintf("%d %s", phases[phase], phase))
	}
	m.say("%s: %s under way: %s", t.Provider, plural(int64(len(t.Moves)), "move"), strings.Join(texts, ", "))
	shown := slices.SortedStableFunc(slices.Values(t.Moves), func(a, b admin.Move) int { return cmp.Compare(idle(a), idle(b)) })
	for i, move := range shown {
		if i == mostMovesShown {
			m.say("  … and %s more", plural(int64(len(shown)-i), "move"))
			break
		}
		m.say("  %s", moveText(move))
	}
}

// idle is how little is being done for a move.
func idle(move admin.Move) int {
	switch {
	case move.Error != "":
		return 0
	case move.Running:
		return 1
	case move.Phase != "waiting":
		return 2
	}
	return 3
}

func moveText(move admin.Move) string {
	what := fmt.Sprintf("slot %d", move.Slot)
	if move.Namespace != "" {
		what = "namespace " + move.Namespace
	}
	text := fmt.Sprintf("%s, %s to %s: %s", what, move.From, move.To, move.Phase)
	if move.Copied > 0 {
		text += fmt.Sprintf(", %s copied", plural(move.Copied, "record"))
	}
	if move.Removed > 0 {
		text += fmt.Sprintf(", %s removed", plural(move.Removed, "record"))
	}
	if move.Error != "" {
		text += "; tried again after: " + move.Error
	}
	return text
}

func (m *Main) shardsMoveCommand() *cobra.Command {
	var f shardsFlags
	cmd := &cobra.Command{
		Use:     "move SLOT CLUSTER",
		Short:   "Move a slot to a cluster",
		Example: "  nearkey shards move 1234 a2 --provider a",
		Args:    args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			slot, err := strconv.Atoi(args[0])
			if err != nil {
				return usagef("%q is no slot; want a number", args[0])
			}
			return m.changeShards(cmd.Context(), f, admin.ChangeMove, admin.ShardsRequest{Slot: &slot, To: args[1]})
		},
	}
	f.flags(cmd, true)
	return cmd
}

func (m *Main) shardsDrainCommand() *cobra.Command {
	var f shardsFlags
	cmd := &cobra.Command{
		Use:   "drain CLUSTER",
		Short: "Move all slots away from a cluster, to the others",
		Long: `Move all slots away from a cluster, to the others, as their weights say. When that
is done the cluster can be taken out of the configuration.`,
		Example: "  nearkey shards drain a1 --provider a",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return m.changeShards(cmd.Context(), f, admin.ChangeDrain, admin.ShardsRequest{Cluster: args[0]})
		},
	}
	f.flags(cmd, true)
	return cmd
}

func (m *Main) shardsRebalanceCommand() *cobra.Command {
	var f shardsFlags
	cmd := &cobra.Command{
		Use:   "rebalance",
		Short: "Move slots to where the weights of the clusters want them",
		Long: `Move slots to where the weights of the clusters want them. After a cluster was added
to the configuration, this is what gives it keys; no more than its share moves.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return m.changeShards(cmd.Context(), f, admin.ChangeRebalance, admin.ShardsRequest{})
		},
	}
	f.flags(cmd, true)
	return cmd
}

func (m *Main) shardsSpreadCommand() *cobra.Command {
	var f shardsFlags
	var count int
	cmd := &cobra.Command{
		Use:   "spread NAMESPACE --buckets N",
		Short: "Divide a namespace that has outgrown a slot into buckets",
		Long: `Divide a namespace that has outgrown a slot into 1 to 256 buckets, a power of two,
each of which is in a slot of its own. Listings then ask all of them.`,
		Example: "  nearkey shards spread sessions --buckets 16 --provider a",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			bits := 0
			for 1<<bits < count {
				bits++
			}
			if count < 1 || 1<<bits != count {
				return usagef("--buckets %d: want a power of two, such as 16", count)
			}
			ids, err := m.namespaceIDs(cmd.Context(), f.connection, args)
			if err != nil {
				return err
			}
			return m.changeShards(cmd.Context(), f, admin.ChangeSpread, admin.ShardsRequest{Namespace: ids[0], Bits: &bits})
		},
	}
	f.flags(cmd, true)
	cmd.Flags().IntVar(&count, "buckets", 0, "`NUMBER` of buckets")
	return cmd
}

// changeShards has the shards of a provider changed, and waits until all has moved.
func (m *Main) changeShards(ctx context.Context, f shardsFlags, change string, request admin.ShardsRequest) error {
	cl, err := m.administrate(f.connection)
	if err != nil {
		return err
	}
	tables, err := m.tables(ctx, cl)
	if err != nil {
		return err
	}
	table, err := f.only(tables)
	if err != nil {
		return err
	}
	f.provider = table.Provider
	path := "/shards/" + url.PathEscape(table.Provider) + "/" + change
	if err := cl.Admin(ctx, http.MethodPost, path, request, &table); err != nil { // which says what was asked for
		return err
	}
	all := len(table.Moves)
	if !f.noWait {
		if table, err = m.awaitMoves(ctx, cl, f, all); err != nil {
			return err
		}
	}
	if f.asJSON {
		return m.printJSON(table)
	}
	switch left := len(table.Moves); {
	case all == 0:
		m.say("There is nothing to be moved.")
	case left > 0:
		m.say("%s under way; 'nearkey shards status' tells how far they are.", plural(int64(left), "move"))
	default:
		m.say("Moved; %s ended.", plural(int64(all), "move"))
	}
	return nil
}

// awaitMoves waits until nothing is on the move in a provider.
func (m *Main) awaitMoves(ctx context.Context, cl *client.Client, f shardsFlags, all int) (table admin.Table, err error) {
	line := &live{m: m}
	defer line.end()
	err = poll(ctx, func() (bool, error) {
		tables, err := m.tables(ctx, cl)
		if err != nil {
			return false, err
		}
		if table, err = f.only(tables); err != nil {
			return false, err
		}
		if table.Refusal != "" {
			return false, errors.New(table.Refusal)
		}
		if left := len(table.Moves); left > 0 {
			line.show("%d of %s left; %s", left, plural(int64(all), "move"), moveText(slices.MinFunc(table.Moves, func(a, b admin.Move) int { return cmp.Compare(idle(a), idle(b)) })))
		}
		return len(table.Moves) == 0, nil
	})
	return table, err
}
