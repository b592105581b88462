package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

func (m *Main) verifyCommand() *cobra.Command {
	var (
		conn       connection
		namespaces []string
		request    admin.VerifyRequest
		asJSON     bool
	)
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare the providers of a server and tell what differs",
		Long: `Compare the providers of a server, key by key, and tell what differs: keys that
one of them lacks, has in an older version or with other content. Keys that wait in
the repair queue count as well; what is being written at this moment does not.

The exit code is 0 if nothing differs or everything that does is to be repaired
(--repair), and 1 otherwise. The server goes on to serve meanwhile.`,
		Example: `  nearkey verify
  nearkey verify --namespace sessions --values --repair
  nearkey verify --json | jq .missing`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.administrate(conn)
			if err != nil {
				return err
			}
			if request.Namespaces, err = m.namespaceIDs(cmd.Context(), conn, namespaces); err != nil {
				return err
			}
			drift, err := m.verify(cmd.Context(), cl, request)
			if err != nil {
				return fmt.Errorf("compare the providers: %w", err)
			}
			return m.printDrift(drift, request.Repair, asJSON)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	fs := cmd.Flags()
	fs.StringArrayVarP(&namespaces, "namespace", "n", nil, "`TITLE` or id of a namespace; may be given several times (default: all)")
	fs.BoolVar(&request.Values, "values", false, "compare the values as well, which reads all of them")
	fs.BoolVar(&request.Repair, "repair", false, "repair what differs")
	fs.IntVar(&request.Rate, "rate", 0, "most `KEYS` a second (default: as fast as it goes)")
	return cmd
}

// namespaceIDs are the ids of namespaces that were named by title or id.
func (m *Main) namespaceIDs(ctx context.Context, conn connection, names []string) (ids []string, err error) {
	var cl *client.Client
	for _, name := range names {
		if isID(name) {
			ids = append(ids, name)
			continue
		}
		if cl == nil {
			if cl, err = m.connect(ctx, conn); err != nil {
				return nil, err
			}
		}
		ns, err := findNamespace(ctx, cl, name)
		if err != nil {
			return nil, err
		}
		ids = append(ids, ns.ID)
	}
	return ids, nil
}

func (m *Main) verify(ctx context.Context, cl *client.Client, request admin.VerifyRequest) (drift admin.Drift, err error) {
	line := &live{m: m}
	defer line.end()
	line.show("comparing the providers")
	err = cl.AdminWork(ctx, http.MethodPost, "/verify", request, func(text json.RawMessage) {
		var p admin.VerifyProgress
		if json.Unmarshal(text, &p) == nil && p.Drift.Compared > 0 {
			line.show("compared %s, %s differ; at %q of namespace %s", plural(int64(p.Drift.Compared), "key"), grouped(int64(p.Drift.Total())), p.Key, p.Namespace)
		}
	}, &drift)
	return drift, err
}

// printDrift tells what differs, keys as rows.
func (m *Main) printDrift(drift admin.Drift, repair, asJSON bool) error {
	if asJSON {
		if err := m.printJSON(drift); err != nil {
			return err
		}
		return differing(drift, repair)
	}
	names := sortedKeys(drift.PerProvider)
	if len(drift.Examples) > 0 {
		names = sortedKeys(drift.Examples[0].Versions)
	}
	absent := "absent"
	if drift.Values > 0 {
		absent = "absent or damaged"
	}
	rows := m.rows(false, append([]string{"NAMESPACE", "KEY"}, names...)...)
	for _, e := range drift.Examples {
		cells := []string{e.Namespace, e.Key}
		for _, name := range names {
			cells = append(cells, moment(e.Versions[name], absent))
		}
		if err := rows.add(nil, cells...); err != nil {
			return err
		}
	}
	if err := rows.close(); err != nil {
		return err
	}
	if left := drift.Total() - uint64(len(drift.Examples)); left > 0 {
		m.say("… and %s more.", grouped(int64(left)))
	}
	m.say("Compared %s.", plural(int64(drift.Compared), "key"))
	for _, kind := range []struct {
		n    uint64
		text string
	}{
		{drift.Missing, "that a provider lacks"}, {drift.Older, "of which a provider has an older version"},
		{drift.Content, "of equal version and different content"}, {drift.Values, "whose value is missing, damaged or different somewhere"},
	} {
		if kind.n > 0 {
			m.say("  %s %s", plural(int64(kind.n), "key"), kind.text)
		}
	}
	for _, name := range sortedKeys(drift.PerProvider) {
		m.say("  %s lacks what another has of %s", name, plural(int64(drift.PerProvider[name]), "key"))
	}
	switch {
	case drift.Total() == 0:
		m.say("Nothing differs.")
	case repair:
		m.say("What differs is being repaired; 'nearkey repair status' tells how far that is.")
	}
	return differing(drift, repair)
}

// differing is the end of a comparison that found something and leaves it so.
func differing(drift admin.Drift, repair bool) error {
	if drift.Total() == 0 || repair {
		return nil
	}
	return &exitError{exitFailed, fmt.Errorf("the providers differ in %s; --repair has them repaired", plural(int64(drift.Total()), "key"))}
}

func (m *Main) repairCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:   "repair",
		Short: "See and hasten the repair of what differs between providers",
		Long: `See and hasten the repair of what differs between providers. Repair goes on by
itself: what a provider missed waits in a queue until it is back, and all providers
are compared from time to time. The depth and the age of the queue are what to
watch: an acknowledged write that waits there is with one provider alone.`,
		Example: "  nearkey repair status\n  nearkey repair run",
	})
	cmd.AddCommand(m.repairStatusCommand(), m.repairRunCommand())
	return cmd
}

func (m *Main) repairStatusCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the repair queue, the comparison of providers, and the providers",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.administrate(conn)
			if err != nil {
				return err
			}
			status, err := repairStatus(cmd.Context(), cl)
			if err != nil {
				return err
			}
			if asJSON {
				return m.printJSON(status)
			}
			fmt.Fprintln(m.Stdout, queueText(status.Queue))
			fmt.Fprintln(m.Stdout, crawlText(status.Crawl))
			return m.printProviders(status.Providers, false)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func repairStatus(ctx context.Context, cl *client.Client) (status admin.Repair, err error) {
	if err := cl.Admin(ctx, http.MethodGet, "/repair", nil, &status); err != nil {
		return admin.Repair{}, fmt.Errorf("ask for the state of repair: %w", err)
	}
	return status, nil
}

func queueText(q admin.Queue) string {
	text := "queue: empty"
	if q.Depth > 0 {
		text = fmt.Sprintf("queue: %s, the oldest for %s", plural(int64(q.Depth), "key"), spanOf(q.OldestSeconds))
	}
	if q.Dirty > 0 {
		text += fmt.Sprintf("; %s to be compared as a whole", plural(int64(q.Dirty), "namespace"))
	}
	return text + fmt.Sprintf(" (%s repaired since the start)", plural(int64(q.Repaired), "key"))
}

func crawlText(c admin.Crawl) string {
	found := fmt.Sprintf("%s compared, %s differed", plural(int64(c.Compared), "key"), grouped(int64(c.Drift)))
	switch {
	case c.Running:
		return fmt.Sprintf("comparison: under way (%s), %s; at %s of namespace %s", c.Reason, found, strconv.Quote(c.Key), firstNonEmpty(c.Namespace, "-"))
	case c.Error != "":
		return fmt.Sprintf("comparison: the last one ended early (%s): %s", c.Error, found)
	case c.Finished == nil:
		return "comparison: none yet"
	}
	return fmt.Sprintf("comparison: the last one ended %s, %s, %s forgotten", ago(*c.Finished), found, plural(int64(c.Forgotten), "deletion"))
}

func (m *Main) repairRunCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Compare all providers now and repair what differs",
		Long: `Compare all providers now and repair what differs. The command ends when everything
was compared and the repair queue is empty; it says so if a provider is down, for
which keys go on to wait. The server goes on without the command, too.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.administrate(conn)
			if err != nil {
				return err
			}
			crawl, err := m.crawl(cmd.Context(), cl)
			if err != nil {
				return fmt.Errorf("compare the providers: %w", err)
			}
			status, err := m.awaitQueue(cmd.Context(), cl)
			if err != nil {
				return err
			}
			status.Crawl = crawl
			if asJSON {
				err = m.printJSON(status)
			} else {
				_, err = fmt.Fprintf(m.Stdout, "%s\n%s\n", crawlText(crawl), queueText(status.Queue))
			}
			if err == nil && status.Queue.Depth > 0 {
				return &exitError{exitPartial, fmt.Errorf("%s wait for %s", plural(int64(status.Queue.Depth), "key"), downText(status.Providers))}
			}
			return err
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (m *Main) crawl(ctx context.Context, cl *client.Client) (crawl admin.Crawl, err error) {
	line := &live{m: m}
	defer line.end()
	line.show("comparing the providers")
	err = cl.AdminWork(ctx, http.MethodPost, "/repair/crawl", nil, func(text json.RawMessage) {
		var c admin.Crawl
		if json.Unmarshal(text, &c) == nil && c.Started != nil {
			line.show("%s", crawlText(c))
		}
	}, &crawl)
	return crawl, err
}

// awaitQueue waits until the repair queue is empty, or a provider is down for which
// it is not.
func (m *Main) awaitQueue(ctx context.Context, cl *client.Client) (status admin.Repair, err error) {
	line := &live{m: m}
	defer line.end()
	err = poll(ctx, func() (bool, error) {
		if status, err = repairStatus(ctx, cl); err != nil {
			return false, err
		}
		line.show("%s", queueText(status.Queue))
		return status.Queue.Depth == 0 || downText(status.Providers) != "", nil
	})
	return status, err
}

// downText names the providers that are down and in use; empty: none.
func downText(providers []admin.Provider) string {
	text := ""
	for _, p := range providers {
		if p.Up || p.State == "removed" {
			continue
		}
		if text != "" {
			text += " and "
		}
		text += p.Name
	}
	if text == "" {
		return ""
	}
	return "provider " + text + ", which is down"
}
