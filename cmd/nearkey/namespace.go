package main

import (
	"fmt"
	"net/http"

	"github.com/nearkey/nearkey/api/admin"
	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

func (m *Main) namespaceCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "namespace",
		Aliases: []string{"namespaces", "ns"},
		Short:   "Create, list, rename and delete namespaces, and say when their writes are acknowledged",
		Example: `  nearkey namespace create sessions
  nearkey namespace list
  nearkey namespace rename sessions --new-name sessions-2026
  nearkey namespace delete sessions-2026`,
	})
	cmd.AddCommand(m.namespaceCreateCommand(), m.namespaceListCommand(), m.namespaceRenameCommand(), m.namespaceDeleteCommand(), m.namespaceAckCommand())
	return cmd
}

func (m *Main) namespaceCreateCommand() *cobra.Command {
	var (
		conn         connection
		asJSON       bool
		jurisdiction string
	)
	cmd := &cobra.Command{
		Use:     "create TITLE",
		Short:   "Create a namespace and print its id",
		Example: "  nearkey namespace create sessions\n  ID=$(nearkey namespace create sessions)",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			ns, err := cl.CreateNamespace(cmd.Context(), args[0], jurisdiction)
			if err != nil {
				return fmt.Errorf("create namespace %q: %w", args[0], err)
			}
			if asJSON {
				return m.printJSON(ns)
			}
			m.say("Created namespace %q.", ns.Title)
			_, err = fmt.Fprintln(m.Stdout, ns.ID)
			return err
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringVar(&jurisdiction, "jurisdiction", "", "jurisdiction in which its data stays, such as eu, where the server knows any")
	return cmd
}

func (m *Main) namespaceListCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the namespaces of the account",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			rows := m.rows(asJSON, "ID", "TITLE")
			for ns, err := range cl.Namespaces(cmd.Context()) {
				if err != nil {
					return fmt.Errorf("list namespaces: %w", err)
				}
				if err := rows.add(ns, ns.ID, ns.Title); err != nil {
					return err
				}
			}
			return rows.close()
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (m *Main) namespaceRenameCommand() *cobra.Command {
	var (
		target  target
		asJSON  bool
		newName string
	)
	cmd := &cobra.Command{
		Use:     "rename NAMESPACE --new-name TITLE",
		Short:   "Give a namespace another title; its id stays",
		Example: "  nearkey namespace rename sessions --new-name sessions-2026",
		Args:    args(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			rest, err := target.split(args, 1)
			if err != nil {
				return err
			}
			switch {
			case newName == "" && len(rest) == 1:
				newName = rest[0]
			case newName == "":
				return usagef("what is its new title? Give it with --new-name")
			case len(rest) > 0:
				return usagef("two new titles: %q and %q", newName, rest[0])
			}
			cl, ns, err := m.open(cmd.Context(), target)
			if err != nil {
				return err
			}
			renamed, err := cl.RenameNamespace(cmd.Context(), ns.ID, newName)
			if err != nil {
				return fmt.Errorf("rename namespace %q: %w", ns.Title, err)
			}
			return m.done(asJSON, renamed, "Renamed namespace %q to %q.", ns.Title, renamed.Title)
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringVar(&newName, "new-name", "", "the new `TITLE`")
	return cmd
}

func (m *Main) namespaceDeleteCommand() *cobra.Command {
	var (
		target      target
		asJSON, yes bool
	)
	cmd := &cobra.Command{
		Use:     "delete NAMESPACE",
		Aliases: []string{"rm"},
		Short:   "Delete a namespace with all its keys",
		Example: "  nearkey namespace delete sessions\n  nearkey namespace delete --namespace-id 0f2ac74b498b48028cb68387c421e279 -y",
		Args:    args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := target.split(args, 0); err != nil {
				return err
			}
			cl, ns, err := m.open(cmd.Context(), target)
			if err != nil {
				return err
			}
			if err := m.confirm(yes, fmt.Sprintf("Delete namespace %q with all its keys?", ns.Title)); err != nil {
				return err
			}
			if err := cl.DeleteNamespace(cmd.Context(), ns.ID); err != nil {
				return fmt.Errorf("delete namespace %q: %w", ns.Title, err)
			}
			return m.done(asJSON, client.Namespace{ID: ns.ID, Title: ns.Title}, "Deleted namespace %q.", ns.Title)
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	yesFlags(cmd, &yes)
	return cmd
}

func (m *Main) namespaceAckCommand() *cobra.Command {
	var (
		target target
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "ack NAMESPACE [first|both|default]",
		Short: "Show or choose which providers have a write when it is acknowledged",
		Long: `Show or choose which providers of a server have a write of a namespace when it is
acknowledged: the first that has it, both, or as the server is configured (default).
With first a write succeeds while a provider is away; the other gets it later. With
both nothing is lost with a provider, and no write succeeds while one is away.`,
		Example: "  nearkey namespace ack sessions\n  nearkey namespace ack ledger both",
		Args:    args(cobra.MaximumNArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			rest, err := target.split(args, 1)
			if err != nil {
				return err
			}
			cl, ns, err := m.open(cmd.Context(), target)
			if err != nil {
				return err
			}
			var ack admin.Ack
			path := "/namespaces/" + ns.ID + "/ack"
			if len(rest) == 0 {
				err = cl.Admin(cmd.Context(), http.MethodGet, path, nil, &ack)
			} else {
				err = cl.Admin(cmd.Context(), http.MethodPut, path, admin.Ack{Ack: rest[0]}, &ack)
			}
			if err != nil {
				return fmt.Errorf("acknowledgement of namespace %q: %w", ns.Title, err)
			}
			if asJSON {
				return m.printJSON(ack)
			}
			_, err = fmt.Fprintln(m.Stdout, ack.Ack)
			return err
		},
	}
	target.flags(cmd)
	jsonFlag(cmd, &asJSON)
	return cmd
}
