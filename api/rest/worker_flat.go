package rest

import (
	"encoding/json"
	"mime/multipart"
	"strconv"
	"strings"
)

// The SDK for TypeScript sends metadata field by field, each a part of the form:
// metadata[bindings][][name]. All values are then texts; those that must be
// something else become so.

// maxFlatDepth is the greatest number of fields within each other.
const maxFlatDepth = 8

// flatFields takes the name of such a part apart: the fields from the outermost to
// the innermost, "" for an item of a list. It is nil for any other part.
func flatFields(name, about string) []string {
	rest, ok := strings.CutPrefix(name, about+"[")
	if !ok || !strings.HasSuffix(rest, "]") {
		return nil
	}
	fields := strings.Split(strings.TrimSuffix(rest, "]"), "][")
	if len(fields) > maxFlatDepth || fields[0] == "" {
		return nil
	}
	return fields
}

// addField takes a part that is a field of the metadata.
func (up *script) addField(c *call, part *multipart.Part, fields []string) error {
	tooLong := func() error { return badUpload("The metadata has more than %d bytes.", maxUploadMetadata) }
	text, err := c.readPart(part, maxUploadMetadata, tooLong)
	if err != nil {
		return err
	}
	if up.flatBytes += len(text); up.flatBytes > maxUploadMetadata {
		return tooLong()
	}
	if up.flat == nil {
		up.flat = map[string]any{}
	}
	if setField(up.flat, fields, flatValue(fields[len(fields)-1], string(text))) == nil {
		return badUpload("The fields of the metadata contradict each other.")
	}
	return nil
}

// flatValue is the value of a field, by what it must be.
func flatValue(field, text string) any {
	switch field {
	case "cpu_ms", "head_sampling_rate":
		if _, err := strconv.ParseFloat(text, 64); err == nil {
			return json.Number(text)
		}
	case "logpush", "enabled", "invocation_logs", "persist", "keep_assets":
		if b, err := strconv.ParseBool(text); err == nil {
			return b
		}
	}
	return text
}

// setField returns what in has become with a value at fields, nil if something else
// is there. Of a list, an item goes on until a field of it comes again.
func setField(in any, fields []string, value any) any {
	if len(fields) == 0 {
		if in != nil {
			return nil
		}
		return value
	}
	if fields[0] == "" {
		list, ok := in.([]any)
		if in != nil && !ok {
			return nil
		}
		if len(list) > 0 && len(fields) > 1 {
			if grown := setField(list[len(list)-1], fields[1:], value); grown != nil {
				list[len(list)-1] = grown
				return list
			}
		}
		item := setField(nil, fields[1:], value)
		if item == nil {
			return nil
		}
		return append(list, item)
	}
	object, ok := in.(map[string]any)
	if in == nil {
		object, ok = map[string]any{}, true
	}
	if !ok {
		return nil
	}
	made := setField(object[fields[0]], fields[1:], value)
	if made == nil {
		return nil
	}
	object[fields[0]] = made
	return object
}
