package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func (m *Main) providersCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "providers",
		Aliases: []string{"provider"},
		Short:   "See the providers of a server, add one and take one away",
		Long: `See the providers of a server, add one and take one away, while it serves. A new
provider is first named in the configuration; after a restart of the server it is
being filled: it gets all new writes and a copy of everything else, and nobody is
answered from it. When it is filled, promote lets it answer.`,
		Example: `  nearkey providers list
  nearkey providers fill b
  nearkey providers promote b
  nearkey providers remove a`,
	})
	cmd.AddCommand(m.providersListCommand(), m.providersFillCommand(), m.providersPromoteCommand(), m.providersRemoveCommand(), m.providersDistrustCommand())
	return cmd
}

func (m *Main) providersListCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the providers and how they are",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.administrate(conn)
			if err != nil {
				return err
			}
			status, err := repairStatus(cmd.Context(), cl)
			if err != nil {
				return err
			}
			return m.printProviders(status.Providers, asJSON)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

// printProviders lists providers.
func (m *Main) printProviders(providers []admin.Provider, asJSON bool) error {
	rows := m.rows(asJSON, "PROVIDER", "STATE", "UP", "SINCE", "BELIEVED", "QUEUED", "LATENCY", "CALLS", "FAILED", "REPAIRED", "ERROR")
	for _, p := range providers {
		err := rows.add(p, p.Name, stateText(p), yesNo(p.Up), agoIf(p.Since), yesNo(p.Trusted), grouped(int64(p.Queued)),
			spanOf(p.LatencySeconds), grouped(int64(p.Calls)), grouped(int64(p.Failures+p.Timeouts)), grouped(int64(p.Repaired)), firstNonEmpty(p.Error, "-"))
		if err != nil {
			return err
		}
	}
	return rows.close()
}

func stateText(p admin.Provider) string {
	if p.State == "filling" && p.Filled {
		return "filled"
	}
	return p.State
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// changeProvider has a provider changed and returns what it is then. A refusal says
// what was asked for.
func changeProvider(ctx context.Context, cl *client.Client, name, change string, how admin.ProviderRequest) (p admin.Provider, err error) {
	err = cl.Admin(ctx, http.MethodPost, "/providers/"+url.PathEscape(name)+"/"+change, how, &p)
	return p, err
}

func (m *Main) providersFillCommand() *cobra.Command {
	var (
		conn                     connection
		asJSON, wipe, noWait, ok bool
	)
	cmd := &cobra.Command{
		Use:   "fill PROVIDER",
		Short: "Copy everything into a provider that is not asked meanwhile",
		Long: `Have a provider filled from the others. From now on it gets all writes, and is
asked nothing. The command tells how far the copy is and ends when it is done; if
it is interrupted, the server goes on. Of a provider that is being filled already,
such as one that is new in the configuration, it only tells that.

A provider that holds records of unknown age is refused, because keys that were
deleted since could come back to life: --wipe empties it first.`,
		Example: "  nearkey providers fill b && nearkey providers promote b",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := m.administrate(conn)
			if err != nil {
				return err
			}
			p, err := m.fill(cmd.Context(), cl, args[0], wipe, ok)
			if err == nil && !noWait {
				p, err = m.awaitFilled(cmd.Context(), cl, args[0])
			}
			if err != nil {
				return err
			}
			if p.Filled {
				return m.done(asJSON, p, "Provider %s is filled. Let it answer with: nearkey providers promote %s", p.Name, p.Name)
			}
			return m.done(asJSON, p, "Provider %s is being filled.", p.Name)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&wipe, "wipe", false, "empty it first")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "do not wait until it is filled")
	cmd.Flags().BoolVarP(&ok, "yes", "y", false, "do not ask")
	return cmd
}

// fill has a provider filled, unless that is under way already.
func (m *Main) fill(ctx context.Context, cl *client.Client, name string, wipe, ok bool) (admin.Provider, error) {
	status, err := repairStatus(ctx, cl)
	if err != nil {
		return admin.Provider{}, err
	}
	question := ""
	for _, p := range status.Providers {
		switch {
		case p.Name != name:
		case p.State == "filling" && !wipe:
			return p, nil
		case wipe:
			question = fmt.Sprintf("Empty provider %s before it is filled?", name)
		case p.State == "active":
			question = fmt.Sprintf("Provider %s is active. Have it answer nobody until it is filled anew and promoted?", name)
		}
	}
	if question != "" {
		if err := m.confirm(ok, question); err != nil {
			return admin.Provider{}, err
		}
	}
	return changeProvider(ctx, cl, name, admin.ChangeFill, admin.ProviderRequest{Wipe: wipe})
}

// awaitFilled waits until a provider is filled and nothing waits for it.
func (m *Main) awaitFilled(ctx context.Context, cl *client.Client, name string) (found admin.Provider, err error) {
	line := &live{m: m}
	defer line.end()
	err = poll(ctx, func() (bool, error) {
		status, err := repairStatus(ctx, cl)
		if err != nil {
			return false, err
		}
		i := slices.IndexFunc(status.Providers, func(p admin.Provider) bool { return p.Name == name })
		if i < 0 || status.Providers[i].State == "removed" {
			return false, fmt.Errorf("provider %s was removed meanwhile", name)
		}
		found = status.Providers[i]
		line.show("filling %s: %s compared, %s copied, %s waiting", name, plural(int64(status.Crawl.Compared), "key"), grouped(int64(found.Repaired)), grouped(int64(found.Queued)))
		return found.Filled && found.Queued == 0, nil
	})
	return found, err
}

func (m *Main) providersPromoteCommand() *cobra.Command {
	return m.providerChange("promote PROVIDER", admin.ChangePromote, "Let a provider that was filled answer",
		`Let a provider that was filled answer, and count for acknowledgements. It is refused
while the provider is not filled, is down, or keys wait to be brought to it.`,
		"Provider %s is active.")
}

func (m *Main) providersDistrustCommand() *cobra.Command {
	return m.providerChange("distrust PROVIDER", admin.ChangeDistrust, "Say that a provider may have gone back in time",
		`Say that a provider may have gone back in time, for example because it was restored
from a backup. Nothing that it says is believed alone until it was compared with the
others, which begins at once. The server finds this out by itself in most cases.`,
		"Provider %s is not believed alone until it was compared with the others.")
}

// providerChange is a command that changes a provider and needs no more than its name.
func (m *Main) providerChange(use, change, short, long, done string) *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := m.administrate(conn)
			if err != nil {
				return err
			}
			p, err := changeProvider(cmd.Context(), cl, args[0], change, admin.ProviderRequest{})
			if err != nil {
				return err
			}
			return m.done(asJSON, p, done, p.Name)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (m *Main) providersRemoveCommand() *cobra.Command {
	var (
		conn              connection
		asJSON, force, ok bool
	)
	cmd := &cobra.Command{
		Use:     "remove PROVIDER",
		Aliases: []string{"rm"},
		Short:   "Take a provider out of use",
		Long: `Take a provider out of use: it is neither written to nor asked any more. Its records
stay where they are. It is refused while keys wait in the repair queue that only this
provider has; --force gives them up.

Take it out of the configuration afterwards.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := m.administrate(conn)
			if err != nil {
				return err
			}
			if err := m.confirm(ok, fmt.Sprintf("Take provider %s out of use?", args[0])); err != nil {
				return err
			}
			p, err := changeProvider(cmd.Context(), cl, args[0], admin.ChangeRemove, admin.ProviderRequest{Force: force})
			if err != nil {
				return err
			}
			return m.done(asJSON, p, "Provider %s is out of use. Take it out of the configuration; 'nearkey providers fill %s' takes it back.", p.Name, p.Name)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&force, "force", false, "also if it alone has keys that wait for repair")
	cmd.Flags().BoolVarP(&ok, "yes", "y", false, "do not ask")
	return cmd
}
