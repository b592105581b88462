package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nearkey/nearkey/client"
	"github.com/spf13/cobra"
)

func (m *Main) tokenCommand() *cobra.Command {
	cmd := group(&cobra.Command{
		Use:     "token",
		Aliases: []string{"tokens"},
		Short:   "Create, list and revoke API tokens",
		Example: `  nearkey token create ci --scope write:sessions --expires 30d
  nearkey token create images --scope read:site:img/
  nearkey token list
  nearkey token revoke ci`,
	})
	cmd.AddCommand(m.tokenCreateCommand(), m.tokenListCommand(), m.tokenRevokeCommand())
	return cmd
}

// tokenJSON is a token as --json shows it.
type tokenJSON struct {
	ID      string     `json:"id"`
	Name    string     `json:"name"`
	Status  string     `json:"status,omitempty"`
	Scopes  []string   `json:"scopes"`
	Issued  *time.Time `json:"issued_on,omitempty"`
	Expires *time.Time `json:"expires_on,omitempty"`
	Secret  string     `json:"value,omitempty"`
}

func newTokenJSON(t client.Token) tokenJSON {
	j := tokenJSON{ID: t.ID, Name: t.Name, Status: t.Status, Secret: t.Secret, Scopes: []string{}}
	for _, s := range t.Scopes {
		j.Scopes = append(j.Scopes, s.String())
	}
	if !t.Issued.IsZero() {
		j.Issued = &t.Issued
	}
	if !t.Expires.IsZero() {
		j.Expires = &t.Expires
	}
	return j
}

func (m *Main) tokenCreateCommand() *cobra.Command {
	var (
		conn    connection
		asJSON  bool
		scopes  []string
		expires string
	)
	cmd := &cobra.Command{
		Use:   "create NAME --scope SCOPE...",
		Short: "Create a token and print it, once",
		Long: `Create a token and print it on stdout. It is shown this once: the server keeps
only a hash of it. A scope is one of

  read | write                      the whole account, its Workers too; write
                                    includes read
  read:NAMESPACE                    one namespace, by title or id
  write:NAMESPACE:PREFIX            its keys that begin with PREFIX

and may be repeated. A title with a colon in it is named by its id.`,
		Example: `  nearkey token create ci --scope write:sessions --expires 30d > ci.token
  nearkey token create backup --scope read`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			until, err := expiresAt(time.Now(), expires)
			if err != nil {
				return err
			}
			if len(scopes) == 0 {
				return usagef("what may it do? Say so with --scope, such as --scope read or --scope write:NAMESPACE")
			}
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			parsed := make([]client.Scope, len(scopes))
			for i, text := range scopes {
				if parsed[i], err = parseScope(cmd.Context(), cl, text); err != nil {
					return err
				}
			}
			token, err := cl.CreateToken(cmd.Context(), args[0], parsed, until)
			if err != nil {
				return fmt.Errorf("create token %q: %w", args[0], err)
			}
			if asJSON {
				return m.printJSON(newTokenJSON(token))
			}
			m.say("Created token %q (id %s). It is shown this once:", token.Name, token.ID)
			_, err = fmt.Fprintln(m.Stdout, token.Secret)
			return err
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	cmd.Flags().StringArrayVar(&scopes, "scope", nil, "`SCOPE`: read, write, read:NAMESPACE, write:NAMESPACE:PREFIX; may be repeated")
	cmd.Flags().StringVar(&expires, "expires", "", "`TIME` after which it is not accepted: 12h, 30d, or a date such as 2027-01-31 or 2027-01-31T12:00:00Z (default: never)")
	return cmd
}

// parseScope reads a scope of the command line; its namespace may be a title.
func parseScope(ctx context.Context, cl *client.Client, text string) (client.Scope, error) {
	permission, rest, named := strings.Cut(text, ":")
	namespace, prefix, _ := strings.Cut(rest, ":")
	scope := client.Scope{Write: permission == "write", Prefix: prefix}
	if permission != "read" && permission != "write" {
		return client.Scope{}, usagef("--scope %q: want read or write at its begin%s", text, didYouMean(permission, []string{"read", "write"}))
	}
	if !named {
		return scope, nil
	}
	if namespace == "" {
		return client.Scope{}, usagef("--scope %q: which namespace?", text)
	}
	ns, err := findNamespace(ctx, cl, namespace)
	if err != nil {
		return client.Scope{}, fmt.Errorf("--scope %q: %w", text, err)
	}
	scope.Namespace = ns.ID
	return scope, nil
}

// expiresAt reads a time: a distance from now or a date.
func expiresAt(now time.Time, text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	var d Duration
	if err := d.UnmarshalText([]byte(text)); err == nil {
		if d < Duration(time.Second) {
			return time.Time{}, usagef("--expires %s: want at least a second", text)
		}
		return now.Add(time.Duration(d)), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		at, err := time.Parse(layout, text)
		if err == nil && !at.After(now) {
			return time.Time{}, usagef("--expires %s has passed", text)
		}
		if err == nil {
			return at, nil
		}
	}
	return time.Time{}, usagef("--expires %q: want a distance such as 12h or 30d, or a date such as 2027-01-31", text)
}

func (m *Main) tokenListCommand() *cobra.Command {
	var (
		conn   connection
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the tokens of the account",
		Args:    args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			rows := m.rows(asJSON, "ID", "NAME", "STATUS", "EXPIRES", "SCOPES")
			for t, err := range cl.Tokens(cmd.Context()) {
				if err != nil {
					return fmt.Errorf("list tokens: %w", err)
				}
				j, expires := newTokenJSON(t), ""
				if j.Expires != nil {
					expires = j.Expires.UTC().Format(time.RFC3339)
				}
				if err := rows.add(j, t.ID, t.Name, t.Status, expires, strings.Join(j.Scopes, " ")); err != nil {
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

func (m *Main) tokenRevokeCommand() *cobra.Command {
	var (
		conn        connection
		asJSON, yes bool
	)
	cmd := &cobra.Command{
		Use:     "revoke TOKEN",
		Aliases: []string{"delete", "rm"},
		Short:   "Make a token, named by its id or name, useless for ever",
		Example: "  nearkey token revoke ci",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cl, err := m.connect(cmd.Context(), conn)
			if err != nil {
				return err
			}
			token, err := findToken(cmd.Context(), cl, args[0])
			if err != nil {
				return err
			}
			if err := m.confirm(yes, fmt.Sprintf("Revoke token %q (id %s) for ever?", token.Name, token.ID)); err != nil {
				return err
			}
			if err := cl.RevokeToken(cmd.Context(), token.ID); err != nil {
				return fmt.Errorf("revoke token %q: %w", token.Name, err)
			}
			return m.done(asJSON, map[string]string{"id": token.ID, "name": token.Name}, "Revoked token %q (id %s).", token.Name, token.ID)
		},
	}
	conn.flags(cmd)
	jsonFlag(cmd, &asJSON)
	yesFlags(cmd, &yes)
	return cmd
}

// findToken finds a token by its id, or by its name if only one token that is
// still active has it.
func findToken(ctx context.Context, cl *client.Client, name string) (client.Token, error) {
	var named []client.Token
	var names []string
	for t, err := range cl.Tokens(ctx) {
		if err != nil {
			return client.Token{}, fmt.Errorf("find token %q: %w", name, err)
		}
		if t.ID == name {
			return t, nil
		}
		if t.Name == name && t.Status == "active" {
			named = append(named, t)
		}
		names = append(names, t.Name)
	}
	switch len(named) {
	case 0:
		return client.Token{}, &exitError{exitNotFound, fmt.Errorf("there is no active token %q%s\n'nearkey token list' shows the tokens there are", name, didYouMean(name, names))}
	case 1:
		return named[0], nil
	}
	return client.Token{}, usageError(errors.New("several tokens are named so; name it by its id, which 'nearkey token list' shows"))
}
