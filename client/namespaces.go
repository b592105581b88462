package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
)

// Namespace is a namespace of the account.
type Namespace struct {
	ID           string `json:"id"`
	Title        string `json:"title"`
	Jurisdiction string `json:"jurisdiction,omitempty"`
}

// namespacesPage is how many namespaces are asked for at once.
const namespacesPage = 100

// Namespaces are all namespaces of the account, by title.
func (c *Client) Namespaces(ctx context.Context) iter.Seq2[Namespace, error] {
	return func(yield func(Namespace, error) bool) {
		for page := 1; ; page++ {
			env, err := fetch[[]Namespace](ctx, c, call{
				method: http.MethodGet, path: c.namespacesPath(), idempotent: true,
				query: url.Values{
					"page": {strconv.Itoa(page)}, "per_page": {strconv.Itoa(namespacesPage)},
					"order": {"title"}, "direction": {"asc"},
				},
			})
			if err != nil {
				yield(Namespace{}, err)
				return
			}
			for _, ns := range env.Result {
				if !yield(ns, nil) {
					return
				}
			}
			if len(env.Result) < namespacesPage {
				return
			}
		}
	}
}

// Namespace is the namespace with the given id.
func (c *Client) Namespace(ctx context.Context, id string) (Namespace, error) {
	env, err := fetch[Namespace](ctx, c, call{method: http.MethodGet, path: c.namespacesPath(id), idempotent: true})
	if err != nil {
		return Namespace{}, err
	}
	return env.Result, nil
}

// CreateNamespace makes a namespace. Its title must not be in use. jurisdiction
// may be empty.
func (c *Client) CreateNamespace(ctx context.Context, title, jurisdiction string) (Namespace, error) {
	body, err := jsonBody(struct {
		Title        string `json:"title"`
		Jurisdiction string `json:"jurisdiction,omitempty"`
	}{title, jurisdiction})
	if err != nil {
		return Namespace{}, err
	}
	env, err := fetch[Namespace](ctx, c, call{
		method: http.MethodPost, path: c.namespacesPath(), body: body, contentType: "application/json",
	})
	if err != nil {
		return Namespace{}, err
	}
	return env.Result, nil
}

// RenameNamespace gives a namespace another title.
func (c *Client) RenameNamespace(ctx context.Context, id, title string) (Namespace, error) {
	body, err := jsonBody(map[string]string{"title": title})
	if err != nil {
		return Namespace{}, err
	}
	env, err := fetch[Namespace](ctx, c, call{
		method: http.MethodPut, path: c.namespacesPath(id), body: body, contentType: "application/json", idempotent: true,
	})
	if err != nil {
		return Namespace{}, err
	}
	return env.Result, nil
}

// DeleteNamespace deletes a namespace and all its keys. It is not repeated when
// the connection breaks: a second deletion would answer that there is none.
func (c *Client) DeleteNamespace(ctx context.Context, id string) error {
	_, err := fetch[any](ctx, c, call{method: http.MethodDelete, path: c.namespacesPath(id)})
	return err
}
