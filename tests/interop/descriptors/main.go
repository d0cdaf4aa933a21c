// Command descriptors compares our descriptor set with the descriptors that the public Go modules register: the same
// messages, enums and services, and in them the same fields and methods. It says "N files, N messages, N methods
// equal", or lists the differences and exits with 1.
//
// Of Envoy's interfaces we have a part only: there every message, field and method of ours must be one of theirs.
package main

import (
	"fmt"
	"os"
	"sort"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

type comparison struct {
	differences              []string
	files, messages, methods int
}

// named is a message, an enum or a service.
type named = protoreflect.Descriptor

func (c *comparison) differ(name protoreflect.FullName, format string, args ...any) {
	c.differences = append(c.differences, string(name)+": "+fmt.Sprintf(format, args...))
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: descriptors FILE_DESCRIPTOR_SET")
		os.Exit(2)
	}
	ours, err := load(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, "descriptors:", err)
		os.Exit(2)
	}
	var c comparison
	compareAll(&c, ours, protoregistry.GlobalFiles)
	if len(c.differences) > 0 {
		sort.Strings(c.differences)
		fmt.Println(strings.Join(c.differences, "\n"))
		os.Exit(1)
	}
	fmt.Printf("%d files, %d messages, %d methods equal\n", c.files, c.messages, c.methods)
}

func load(path string) (*protoregistry.Files, error) {
	encoded, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(encoded, &set); err != nil {
		return nil, fmt.Errorf("%s is no descriptor set: %w", path, err)
	}
	return protodesc.NewFiles(&set)
}

// isOurs tells the one interface that nobody else has.
func isOurs(name protoreflect.FullName) bool {
	return within(name, "plastron")
}

// isPart tells the interfaces of which we need a part only.
func isPart(name protoreflect.FullName) bool {
	return within(name, "envoy")
}

func within(name protoreflect.FullName, root string) bool {
	return string(name) == root || strings.HasPrefix(string(name), root+".")
}

func compareAll(c *comparison, ours, theirs *protoregistry.Files) {
	packages := map[protoreflect.FullName]bool{}
	ours.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if within(file.Package(), "google.protobuf") || isOurs(file.Package()) {
			return true
		}
		c.files++
		packages[file.Package()] = true
		for _, our := range topLevel(file) {
			their, err := theirs.FindDescriptorByName(our.FullName())
			if err != nil {
				c.differ(our.FullName(), "only ours")
				continue
			}
			c.compare(our, their)
		}
		return true
	})
	theirs.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		// Messages without a package belong to the Workload API here, but to anybody elsewhere.
		if !packages[file.Package()] || isPart(file.Package()) || (file.Package() == "" && !isWorkloadAPI(file)) {
			return true
		}
		for _, their := range topLevel(file) {
			if _, err := ours.FindDescriptorByName(their.FullName()); err != nil {
				c.differ(their.FullName(), "only theirs")
			}
		}
		return true
	})
}

func isWorkloadAPI(file protoreflect.FileDescriptor) bool {
	return file.Services().ByName("SpiffeWorkloadAPI") != nil
}

func topLevel(file protoreflect.FileDescriptor) []named {
	var all []named
	all = append(all, messages(file.Messages())...)
	all = append(all, enums(file.Enums())...)
	for i := range file.Services().Len() {
		all = append(all, file.Services().Get(i))
	}
	return all
}

func messages(list protoreflect.MessageDescriptors) []named {
	var all []named
	for i := range list.Len() {
		all = append(all, list.Get(i))
	}
	return all
}

func enums(list protoreflect.EnumDescriptors) []named {
	var all []named
	for i := range list.Len() {
		all = append(all, list.Get(i))
	}
	return all
}

func (c *comparison) compare(our, their named) {
	switch our := our.(type) {
	case protoreflect.MessageDescriptor:
		if their, ok := their.(protoreflect.MessageDescriptor); ok {
			c.compareMessage(our, their)
			return
		}
	case protoreflect.EnumDescriptor:
		if their, ok := their.(protoreflect.EnumDescriptor); ok {
			c.compareEnum(our, their)
			return
		}
	case protoreflect.ServiceDescriptor:
		if their, ok := their.(protoreflect.ServiceDescriptor); ok {
			c.compareService(our, their)
			return
		}
	}
	c.differ(our.FullName(), "of another kind")
}

func (c *comparison) compareMessage(our, their protoreflect.MessageDescriptor) {
	c.messages++
	for i := range our.Fields().Len() {
		field := our.Fields().Get(i)
		if other := their.Fields().ByNumber(field.Number()); other == nil {
			c.differ(field.FullName(), "number %d only ours", field.Number())
		} else if ours, theirs := shape(field), shape(other); ours != theirs {
			c.differ(field.FullName(), "ours is %s, theirs %s", ours, theirs)
		}
	}
	c.compareNested(messages(our.Messages()), messages(their.Messages()), isPart(our.FullName()))
	c.compareNested(enums(our.Enums()), enums(their.Enums()), isPart(our.FullName()))
	if isPart(our.FullName()) {
		return
	}
	for i := range their.Fields().Len() {
		field := their.Fields().Get(i)
		if our.Fields().ByNumber(field.Number()) == nil {
			c.differ(field.FullName(), "number %d only theirs", field.Number())
		}
	}
}

func (c *comparison) compareNested(ours, theirs []named, part bool) {
	known := map[protoreflect.FullName]named{}
	for _, their := range theirs {
		known[their.FullName()] = their
	}
	for _, our := range ours {
		if their, found := known[our.FullName()]; found {
			c.compare(our, their)
			delete(known, our.FullName())
		} else {
			c.differ(our.FullName(), "only ours")
		}
	}
	if part {
		return
	}
	for name := range known {
		c.differ(name, "only theirs")
	}
}

// shape is everything about a field that is visible on the wire or in its JSON form.
func shape(field protoreflect.FieldDescriptor) string {
	words := []string{
		field.Cardinality().String(), field.Kind().String(), string(field.Name()), field.JSONName(),
		fmt.Sprint("map=", field.IsMap(), " packed=", field.IsPacked(), " presence=", field.HasPresence()),
	}
	if field.Message() != nil {
		words = append(words, string(field.Message().FullName()))
	}
	if field.Enum() != nil {
		words = append(words, string(field.Enum().FullName()))
	}
	if oneof := field.ContainingOneof(); oneof != nil {
		words = append(words, fmt.Sprint("oneof ", oneof.Name(), " optional=", oneof.IsSynthetic()))
	}
	return strings.Join(words, " ")
}

func (c *comparison) compareEnum(our, their protoreflect.EnumDescriptor) {
	if ours, theirs := values(our), values(their); ours != theirs {
		c.differ(our.FullName(), "ours is %s, theirs %s", ours, theirs)
	}
}

func values(enum protoreflect.EnumDescriptor) string {
	var all []string
	for i := range enum.Values().Len() {
		value := enum.Values().Get(i)
		all = append(all, fmt.Sprint(value.Name(), "=", value.Number()))
	}
	sort.Strings(all)
	return strings.Join(all, " ")
}

func (c *comparison) compareService(our, their protoreflect.ServiceDescriptor) {
	for i := range our.Methods().Len() {
		c.methods++
		method := our.Methods().Get(i)
		if other := their.Methods().ByName(method.Name()); other == nil {
			c.differ(method.FullName(), "only ours")
		} else if ours, theirs := signature(method), signature(other); ours != theirs {
			c.differ(method.FullName(), "ours is %s, theirs %s", ours, theirs)
		}
	}
	for i := range their.Methods().Len() {
		method := their.Methods().Get(i)
		if our.Methods().ByName(method.Name()) == nil {
			c.differ(method.FullName(), "only theirs")
		}
	}
}

func signature(method protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("(%s stream=%t) -> (%s stream=%t)",
		method.Input().FullName(), method.IsStreamingClient(), method.Output().FullName(), method.IsStreamingServer())
}
