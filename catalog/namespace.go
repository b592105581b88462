package catalog

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nearkey/nearkey/kv"
)

const (
	// MaxTitleChars is the greatest number of characters in a title.
	MaxTitleChars = 512
	// MaxNamespacePage is the greatest number of namespaces in a page.
	MaxNamespacePage = 1000
)

// Namespace is what the catalog knows of a namespace.
type Namespace struct {
	ID           kv.NamespaceID
	AccountID    string
	Title        string // unique in its account
	Jurisdiction string // eu, us or fedramp; empty: none
	Created      time.Time
}

// bytes is about the memory that a namespace takes.
func (n *Namespace) bytes() int { return 256 + len(n.Title) }

const namespaceColumns = `id, account_id, title, jurisdiction, created`

type scanner interface{ Scan(dest ...any) error }

func scanNamespace(row scanner) (Namespace, error) {
	var (
		n       Namespace
		id      string
		title   []byte
		created int64
	)
	if err := row.Scan(&id, &n.AccountID, &title, &n.Jurisdiction, &created); err != nil {
		return Namespace{}, err
	}
	parsed, err := kv.ParseNamespaceID(id)
	n.ID, n.Title, n.Created = parsed, string(title), loaded(created)
	return n, err
}

func checkTitle(title string) error {
	if title == "" {
		return ErrTitleMissing
	}
	if utf8.RuneCountInString(title) > MaxTitleChars {
		return ErrTitleTooLong
	}
	return nil
}

// CreateNamespace creates a namespace, unless the account has most of them
// already (0: no limit). A jurisdiction is eu, us, fedramp or none.
func (c *Catalog) CreateNamespace(ctx context.Context, accountID, title, jurisdiction string, most int) (Namespace, error) {
	doing := fmt.Sprintf("create namespace %q", title)
	if err := checkTitle(title); err != nil {
		return Namespace{}, fmt.Errorf("create namespace: %w", err)
	}
	if !slices.Contains([]string{"", "eu", "us", "fedramp"}, jurisdiction) {
		return Namespace{}, fmt.Errorf("%s: %w", doing, invalid("jurisdiction %q: want eu, us or fedramp", jurisdiction))
	}
	n := Namespace{AccountID: accountID, Title: title, Jurisdiction: jurisdiction, Created: loaded(stored(c.now()))}
	rand.Read(n.ID[:]) // never fails, nor hits one of our own
	made := func() { c.publish(ctx, namespaceKey(n.ID)) }
	err := c.change(ctx, doing, made, func(tx *sql.Tx) error {
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		if most > 0 {
			var count int
			if err := tx.QueryRowContext(ctx, `select count(*) from namespaces where account_id = $1`, accountID).Scan(&count); err != nil {
				return err
			}
			if count >= most {
				return ErrTooManyNamespaces
			}
		}
		_, err := tx.ExecContext(ctx, `insert into namespaces (`+namespaceColumns+`) values ($1, $2, $3, $4, $5)`,
			n.ID.String(), n.AccountID, []byte(n.Title), n.Jurisdiction, stored(n.Created))
		return titleTaken(err)
	})
	if err != nil {
		return Namespace{}, err
	}
	return n, nil
}

func titleTaken(err error) error {
	if isDuplicate(err) {
		return ErrTitleTaken
	}
	return err
}

// Namespace returns a namespace of an account. The answer may be CacheFor old.
func (c *Catalog) Namespace(ctx context.Context, accountID string, id kv.NamespaceID) (Namespace, error) {
	n, ok := c.namespaces.get(id, c.now())
	if !ok {
		var err error
		if n, err = c.loadNamespace(ctx, id); err != nil {
			return Namespace{}, err
		}
	}
	if n.AccountID != accountID || OwnNamespace(id) {
		return Namespace{}, fmt.Errorf("namespace %s: %w", id, ErrNotFound)
	}
	return *n, nil
}

func (c *Catalog) loadNamespace(ctx context.Context, id kv.NamespaceID) (*Namespace, error) {
	return c.namespaces.load(ctx, id, func(ctx context.Context) (*Namespace, error) {
		n, err := scanNamespace(c.db.read.QueryRowContext(ctx,
			`select `+namespaceColumns+` from namespaces where id = $1`, id.String()))
		if errors.Is(err, sql.ErrNoRows) {
			err = ErrNotFound
		}
		return &n, failure(ctx, "namespace "+id.String(), err)
	})
}

// RenameNamespace gives a namespace another title.
func (c *Catalog) RenameNamespace(ctx context.Context, accountID string, id kv.NamespaceID, title string) (Namespace, error) {
	if err := checkTitle(title); err != nil {
		return Namespace{}, fmt.Errorf("rename namespace: %w", err)
	}
	var n Namespace
	made := func() {
		c.namespaces.forget(id)
		c.publish(ctx, namespaceKey(id))
	}
	err := c.change(ctx, fmt.Sprintf("rename namespace %s to %q", id, title), made, func(tx *sql.Tx) (err error) {
		if err := one(ctx, tx, `update namespaces set title = $1 where id = $2 and account_id = $3`,
			[]byte(title), id.String(), accountID); err != nil {
			return titleTaken(err)
		}
		n, err = scanNamespace(tx.QueryRowContext(ctx, `select `+namespaceColumns+` from namespaces where id = $1`, id.String()))
		return err
	})
	if err != nil {
		return Namespace{}, err
	}
	return n, nil
}

// DeleteNamespace removes a namespace and the scopes of tokens that named it. Its
// records are removed later, by a Janitor: a note of that is durable when the
// namespace is gone.
func (c *Catalog) DeleteNamespace(ctx context.Context, accountID string, id kv.NamespaceID) error {
	keys := []string{namespaceKey(id)}
	made := func() {
		c.namespaces.forget(id)
		c.forgetRights()
		c.publish(ctx, keys...)
	}
	return c.change(ctx, "delete namespace "+id.String(), made, func(tx *sql.Tx) error {
		// Meanwhile no token is given a scope in it.
		if err := lockAccount(ctx, tx, accountID); err != nil {
			return err
		}
		tokens, err := scopedTokens(ctx, tx, id)
		if err != nil {
			return err
		}
		keys = append(keys, tokens...)
		if err := one(ctx, tx, `delete from namespaces where id = $1 and account_id = $2`, id.String(), accountID); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `insert into dropped_namespaces (id, dropped, drops) values ($1, $2, 0)`,
			id.String(), stored(c.now()))
		return err
	})
}

// scopedTokens returns the keys of the records of tokens with a scope in a
// namespace.
func scopedTokens(ctx context.Context, tx *sql.Tx, id kv.NamespaceID) ([]string, error) {
	return all(ctx, tx, func(row scanner) (string, error) {
		var hash []byte
		err := row.Scan(&hash)
		return tokenKey(hash), err
	}, `select hash from tokens where id in (select token_id from token_scopes where namespace_id = $1)`, id.String())
}

// NamespaceQuery says which namespaces a page holds.
type NamespaceQuery struct {
	Offset     int // how many to skip
	Limit      int // at most so many; 1 to MaxNamespacePage, others are clamped
	OrderByID  bool
	Descending bool
	Only       []kv.NamespaceID // nil: all of the account; at most MaxScopes
}

// Namespaces returns a page of the namespaces of an account, by title or by id,
// and how many there are on all pages.
func (c *Catalog) Namespaces(ctx context.Context, accountID string, q NamespaceQuery) (page []Namespace, total int, err error) {
	doing := "list namespaces of account " + accountID
	if len(q.Only) > MaxScopes {
		return nil, 0, fmt.Errorf("%s: %w", doing, invalid("%d namespaces named, at most %d may be", len(q.Only), MaxScopes))
	}
	where, args := q.where(accountID)
	if err := c.db.read.QueryRowContext(ctx, `select count(*) from namespaces `+where, args...).Scan(&total); err != nil {
		return nil, 0, failure(ctx, doing, err)
	}
	if total == 0 {
		_, err := c.Account(ctx, accountID)
		return nil, 0, err
	}
	limit := q.Limit
	if limit < 1 || limit > MaxNamespacePage {
		limit = MaxNamespacePage
	}
	statement := fmt.Sprintf(`select `+namespaceColumns+` from namespaces %s order by %s limit %d offset %d`,
		where, q.order(), limit, max(q.Offset, 0))
	page, err = all(ctx, c.db.read, scanNamespace, statement, args...)
	if err != nil {
		return nil, 0, failure(ctx, doing, err)
	}
	return page, total, nil
}

func (q NamespaceQuery) where(accountID string) (string, []any) {
	args := []any{accountID}
	if q.Only == nil {
		return `where account_id = $1`, args
	}
	var places []string
	for _, id := range q.Only {
		args = append(args, id.String())
		places = append(places, fmt.Sprintf("$%d", len(args)))
	}
	if len(places) == 0 {
		return `where account_id = $1 and 1 = 0`, args
	}
	return `where account_id = $1 and id in (` + strings.Join(places, ", ") + `)`, args
}

// order is total: titles are unique in an account, and ids are everywhere.
func (q NamespaceQuery) order() string {
	by, direction := "title", " asc"
	if q.OrderByID {
		by = "id"
	}
	if q.Descending {
		direction = " desc"
	}
	return by + direction
}

// querier is a database or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// all returns all rows of a query.
func all[T any](ctx context.Context, db querier, scan func(scanner) (T, error), statement string, args ...any) ([]T, error) {
	rows, err := db.QueryContext(ctx, statement, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []T
	for rows.Next() {
		item, err := scan(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, item)
	}
	return list, rows.Err()
}
