#!/usr/bin/env python3
"""Goldens of engine/tokenizer/chat_template: what transformers' Jinja environment makes of templates.

    python3 -m venv VENV && VENV/bin/pip install transformers==5.24.0 jinja2==3.1.6
    VENV/bin/python tests/golden/make_chat_template_golden.py engine/tokenizer/testdata/chat_template.cases.json \\
        tests/fuzz/seeds/chat_template

The second folder gets the templates as files, for the fuzz target to start from.

The templates are our own, in the form of the model families' templates: the same constructs, not the same text. A case
is {"name", "template", "variables", "text"}, or "error": true where Jinja2 fails too.
"""
import json
import pathlib
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

FAMILIES = {
    "qwen2": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "qwen25": r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are helpful.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n{\"name\": <function-name>}<|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
""",
    "qwen3": r"""{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}""",
    "r1_distill": r"""{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}{{'<｜Assistant｜><｜calls｜>' + tool['type'] + '<｜sep｜>' + tool['function']['name'] + '\n' + '```json' + '\n' + tool['function']['arguments'] + '\n' + '```'}}{%- set ns.is_first = true -%}{%- else %}{{'\n' + tool['function']['name']}}{{'<｜end｜>'}}{%- endif %}{%- endfor %}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is not none %}{%- if ns.is_tool %}{{'<｜outputs▁end｜>' + message['content'] + eos_token}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + eos_token}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<｜outputs｜>' + message['content']}}{%- set ns.is_output_first = false %}{%- else %}{{'\n' + message['content']}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\n'}}{% endif %}""",
    "llama3": """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "llama32": r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- The system message, so that it stands in the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\n\n"}}
{%- endif %}
{{- "Today: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("No first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}
            {{- raise_exception("Only one call at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val|string + '"' }}
            {%- if not loop.last %}{{ ", " }}{%- endif %}
        {%- endfor %}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
""",
    "macros": r"""{%- macro text_of(content, upper=false) -%}
    {%- if content is string -%}{{ content | upper if upper else content }}
    {%- else -%}{%- for part in content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{% for message in messages %}
{{ message.role }}: {{ text_of(message.content, upper=loop.first) }}
{% endfor %}
{% generation %}{{ "answer" if add_generation_prompt }}{% endgeneration %}

tail
""",
}

USER = {"role": "user", "content": "  What is $1+1$?\n"}
SYSTEM = {"role": "system", "content": "Be brief.\n"}
ASSISTANT = {"role": "assistant", "content": "<think>\nsum\n</think>\n\nIt is 2."}
TOOL = {"type": "function", "function": {"name": "add", "description": "Adds <a> & 'b' \"c\" é 日本",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}, "required": []}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {
        "name": "add", "arguments": {"a": 1, "b": 2.5, "c": "x", "d": [True, None]}}}]}
TEXT_CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"type": "function", "function": {"name": "add", "arguments": "{\"a\": 1}"}},
    {"type": "function", "function": {"name": "sub", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "3.5"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]}

CONVERSATIONS = {
    "user": {"messages": [USER], "add_generation_prompt": True},
    "plain": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER], "add_generation_prompt": True},
    "turns": {"messages": [USER, ASSISTANT, USER], "add_generation_prompt": True},
    "ends": {"messages": [SYSTEM, USER, ASSISTANT], "add_generation_prompt": False},
    "tools": {"messages": [SYSTEM, USER, CALL, RESULT, RESULT], "tools": [TOOL], "add_generation_prompt": True},
    "text_calls": {"messages": [USER, TEXT_CALL, RESULT, RESULT, ASSISTANT], "add_generation_prompt": True},
    "builtin": {"messages": [USER], "builtin_tools": ["search", "code_interpreter"], "tools_in_user_message": False,
                "tools": [TOOL], "add_generation_prompt": True},
    "thinking": {"messages": [USER, {"role": "assistant", "content": "2", "reasoning_content": "\nsum\n"}, USER],
                 "enable_thinking": False, "add_generation_prompt": True},
    "parts": {"messages": [PARTS, USER], "add_generation_prompt": True},
    "empty": {"messages": []},
}

VALUES = {"n": 7, "f": 2.5, "s": "Hello, World", "l": [3, 1, 2], "d": {"b": 1, "a": [1, {"x": None}]}, "t": True,
          "u": "é日本👋 ß", "e": "", "nil": None, "lines": "a\n\nb\r\nc", "ws": " \t x y \u00a0\u3000", "q": "it's \"q\"",
          "objects": [{"k": 1, "v": "a"}, {"k": 2, "v": "b"}, {"k": 3}], "items": "shadow"}

# One construct each.
CONSTRUCTS = r"""
{{ n + 1 }} {{ n - 8 }} {{ n * 2 }} {{ n / 2 }} {{ n // 2 }} {{ n % 4 }} {{ -n // 2 }} {{ -n % 4 }} {{ -7.5 % 2 }}
{{ 1 + 2 * 3 - 4 }} {{ (1 + 2) * 3 }} {{ 2.0 }} {{ 1e20 }} {{ 1.5e-7 }} {{ 0.1 + 0.2 }} {{ 1_000 }} {{ 1e16 }} {{ 123456789012345.0 }}
{{ 'a' ~ 1 ~ none ~ true ~ [1, 'x'] }} {{ 'a' + 'b' }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ 3 * [0] }}
{{ n == 7 }} {{ n != 7 }} {{ 1 < n <= 7 }} {{ n > 7.0 }} {{ 'a' < 'b' }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'x' == none }} {{ [1, 2] == [1, 2] }} {{ (1,) == [1] }}
{{ 'World' in s }} {{ 9 not in l }} {{ 'a' in d }} {{ 1 in d }} {{ 'x' in missing }} {{ 'a' in ('a', 'b') }}
{{ not t }} {{ t and n }} {{ e or 'other' }} {{ nil or 0 or 'z' }} {{ not e and t }} {{ not missing is defined }}
{{ 'yes' if t else 'no' }} {{ 'yes' if e else 'no' if nil else 'maybe' }} [{{ 'yes' if e }}]
{{ s[0] }}{{ s[-1] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[:-2] }} {{ s[100:] }} {{ l[::2] }} {{ l[-1] }} {{ u[1:3] }} {{ l[::-1] }} {{ s[10:2:-3] }} [{{ l[9] }}]
{{ d.b }} {{ d['a'][1].x }} {{ d.a.0 }} {{ d['items'] is defined }} {{ d.get('b') }} {{ d.get('z') }} {{ d.get('z', 5) }} {{ d['z'] is defined }} [{{ d.zz }}]
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {{ d.keys() | list }} {{ d.values() | list }}
{% for k in d %}{{ k }}{% endfor %} {% for c in 'aé' %}<{{ c }}>{% endfor %} {% for x in missing %}x{% else %}none{% endfor %}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }} {% endfor %}
{% for x in l %}{{ loop.previtem }}|{{ loop.nextitem }}|{{ loop.cycle('a', 'b') }} {% endfor %}
{% for x in l if x > 1 %}{{ x }}{{ loop.length }}{% else %}none{% endfor %} {% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in l %}{% for y in l %}{{ x * y }}{{ loop.depth }} {% endfor %}{% endfor %}
{% set x = 1 %}{% for y in l %}{% set x = x + y %}{{ x }} {% endfor %}{{ x }}
{% set ns = namespace(x=1, y='a') %}{% for y in l %}{% set ns.x = ns.x + y %}{% endfor %}{{ ns.x }}{{ ns.y }}[{{ ns.z }}]
{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set c = (1, 2) %}{{ c }} {{ (1,) }} {{ () }}
{% set block %}text {{ n }}{% endset %}[{{ block }}]
{% macro m(a, b=2, c=none) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=4) }}{{ m() }}{{ m('x') ~ 'y' }}
{% set g = 1 %}{% macro outer() %}{{ g }}{{ inner(2) }}{% endmacro %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ outer() }}
{{ range(3) | list }} {{ range(1, 4) | list }} {{ range(5, 0, -2) | list }} {{ range(0) | list }}
{{ dict(a=1, b='x') }} {{ {'a': 1, 'b': [1, 2], 3: none} }} {{ {} }} {{ [] }} {{ [1, 2.5, 'a\'b', "c\"d", true, none] }}
{{ ws | trim }}| {{ '--x--' | trim('-') }} {{ s | upper }} {{ s | lower }} {{ u | upper }} {{ 'hELLO wORLD' | capitalize }} {{ nil | trim }}
{{ s | length }} {{ l | length }} {{ d | count }} {{ u | length }} {{ missing | length }}
{{ missing | default('x') }} {{ e | default('x') }}| {{ e | default('x', true) }} {{ nil | d('y') }} {{ nil | d('y', boolean=true) }} {{ missing | default }}|
{{ l | join(', ') }} {{ l | join }} {{ objects | join('-', attribute='k') }} {{ 'abc' | join('.') }} {{ [1, none, true] | join(' ') }}
{{ l | first }} {{ l | last }} {{ s | first }} {{ [] | first }}| {{ 'ab' | list }} {{ d | list }} {{ l | reverse | list }} {{ 'abc' | reverse }}
{{ n | string + 'x' }} {{ '12' | int + 1 }} {{ 'zz' | int(5) }} {{ 2.9 | int }} {{ '2.5' | float }} {{ -3 | abs }} {{ (0 - 3) | abs }} {{ '3.7' | int }}
{{ 'a-b-c' | replace('-', '+') }} {{ 'a-b-c' | replace('-', '+', 1) }} {{ 'abc'.replace('', '.') }} {{ 'aaa'.replace('a', 'b', 2) }}
{{ lines | indent(2) }}|{{ lines | indent(2, true) }}|{{ lines | indent(2, blank=true) }}|{{ 'a\nb' | indent('> ') }}
{{ d | tojson }} {{ q | tojson }} {{ u | tojson }} {{ [1.0, 1e20, true, none] | tojson }} {{ 'a\x01\u2028<>&\'' | tojson }}
{{ d | tojson(indent=2) }} {{ [] | tojson(indent=2) }} {{ u | tojson(ensure_ascii=true) }} {{ d | tojson(sort_keys=true) }} {{ l | tojson(separators=(',', ':')) }} {{ {1: 2} | tojson }}
{{ objects | map(attribute='k') | list }} {{ ['a', 'b'] | map('upper') | join }} {{ ['a-b'] | map('replace', '-', '+') | list }}
{{ l | select('gt', 1) | list }} {{ l | reject('equalto', 1) | list }} {{ l | select('odd') | list }} {{ ['', 'a'] | select | list }} {{ ['', 'a'] | reject | list }}
{{ objects | selectattr('v', 'defined') | map(attribute='v') | list }} {{ objects | rejectattr('v') | list }} {{ objects | selectattr('k', 'eq', 2) | list }}
{{ n is number }} {{ n is integer }} {{ f is float }} {{ t is boolean }} {{ t is number }} {{ t is integer }} {{ s is string }} {{ d is mapping }} {{ l is iterable }} {{ n is iterable }} {{ s is iterable }} {{ l is sequence }} {{ d is sequence }}
{{ nil is none }} {{ nil is not none }} {{ missing is undefined }} {{ missing is none }} {{ t is true }} {{ t is false }} {{ n is true }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 'a' is in ['a'] }} {{ 1 is eq 1 }} {{ 2 is gt 1 }} {{ range is callable }} {{ 'a' is lower }} {{ 'A' is upper }} {{ 'a' is ne 'b' }}
{{ 'a,b,,c'.split(',') }} {{ 'a,b,c'.split(',', 1) }} {{ ' a  b '.split() }} {{ 'a b c'.split(none, 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ ''.split() }} {{ ''.split(',') }} {{ 'a--b'.split('--')[-1] }}
{{ '  x '.strip() }}|{{ '  x '.lstrip() }}|{{ '  x '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ '\n\na\n'.lstrip('\n') }}|{{ 'abcba'.rstrip('ab') }}|{{ '日本日'.strip('日') }}
{{ s.startswith('He') }} {{ s.endswith('ld') }} {{ s.startswith(('x', 'H')) }} {{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ u.find('👋') }} {{ s.count('l') }} {{ '-'.join(['a', 'b']) }} {{ 'ab'.removeprefix('a') }} {{ 'ab'.removesuffix('b') }}
{{ s.upper() }} {{ s.lower() }} {{ 'hello world-x'.title() }} {{ 'hELLO'.capitalize() }} {{ '123'.isdigit() }} {{ 'a1'.isalpha() }} {{ ' '.isspace() }} {{ lines.splitlines() }}
{{ "a\tb\\n\x41\u00e9\U0001F600\101" }} {{ 'a' 'b' }} {{ "\q" }} {{ 'é' }} {{ q }} {{ [q, 'it\'s', "\n\u200b\x7f"] }}
  {% if t %}  
    a
  {% endif %}  
b
{%+ if t %}x{%+ endif +%}
y
{{- ' z ' -}}   
  w {%- if t -%}  v  {%- endif %} u
a {# comment #} b {#- c -#} c
  {# alone #}
d
{% raw %}{{ x }} {% if %}{% endraw %} {%- raw -%}  y  {%- endraw -%}  z
{{ '}}' }} {{ "{%" }} {{ {'a': {'b': 1}}['a']['b'] }} {{ '#}' }} { { } } {x} %}
{{ s|trim|lower|replace('l','L') }} {{ -1|abs }} {{ (l|first) + 1 }} {{ s.lower().split(', ')[1] }} {{ 'a' if 'b' is defined else 'c' }}
{% if n > 5 and s is string or missing %}1{% elif n %}2{% else %}3{% endif %}{% if e %}1{% elif nil %}2{% else %}3{% endif %}
{% set missing2 = missing %}{{ missing2 is defined }} {% set z = none %}{{ z is defined }} {{ loop is defined }}
{{ tools is none }} {{ tools is defined }} {{ objects[0].v }} {{ objects | length > 2 }} {{ items }} {{ true and false or true }} {{ True }} {{ None }}
{{ missing }}{{ missing == missing2 }}{{ missing != none }} {{ '%d' }} {{ 5 is not odd }} {{ not 5 is odd }} {{ d is not mapping }}
{{ 'a' ~ 'b' + 'c' }} {{ 1 ~ 2 + 3 | string }} {{ 7 // 2 * 2 }} {{ 2 * 3 % 4 }} {{ - 2 * 3 }} {{ +n }} {{ [1, 2,] }} {{ {'a': 1,} }} {{ (n) }}
{{ d | items | list }} {{ missing | items | list }} {{ '<b>' | safe }} {{ [1, [2, [3]]] | string }} {{ ('a', 'b')[1] }} {{ "x" "y" | upper }}
{% for a, b in [[1, 2], (3, 4), 'ab'] %}{{ a }}{{ b }} {% endfor %}{% for (a, b) in [[5, 6]] %}{{ a }}{{ b }}{% endfor %}
"""

# Jinja2 fails on these while it runs, and so must we.
FAILURES = [
    "{{ missing.a }}", "{{ missing + 'x' }}", "{{ missing() }}", "{{ 'a' + 1 }}", "{{ none + 'a' }}", "{{ 1 in 5 }}", "{{ 1 in 'a' }}",
    "{% for x in 5 %}{% endfor %}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ 1 < 'a' }}", "{{ missing | tojson }}",
    "{% for a, b in [1] %}{% endfor %}", "{% set d.x = 1 %}", "{{ range(1000000) }}", "{{ none | length }}", "{{ s() }}",
    "{{ 'a'.split('') }}", "{{ [].append(1) }}", "{{ {[]: 1} }}", "{{ l['a'].b }}",
]

# Jinja2 does not take these as templates.
SYNTAX = [
    "{{ 1", "{% if %}", "{% if x %}", "{% endif %}", "{% for x %}{% endfor %}", "{{ a b }}", "{{ 'a }}", "{# a", "{{ (1 }}", "{{ 1) }}",
    "{{ x | nosuch }}", "{{ x is nosuch }}", "{% nosuch %}", "{{ }}", "{% set = 1 %}", "{{ f(a=1, 2) }}", "{% else %}",
    "{% break %}", "{{ a.}}", "{{ [1, }}", "{{ 1 + }}", "{{ a is }}", "{% macro %}{% endmacro %}", "{{ $ }}", "{{ a ? b }}",
]


def render(template, variables):
    values = {"tools": None, "documents": None, **variables}
    return _compile_jinja_template(template).render(**values)


def main():
    special = {"bos_token": "<｜begin｜>", "eos_token": "<｜end▁of▁text｜>"}
    jobs = [(f"{family}/{name}", template, {**special, **variables})
            for family, template in FAMILIES.items() for name, variables in CONVERSATIONS.items()]
    lines = CONSTRUCTS.strip("\n").split("\n")
    jobs += [(f"construct {i}", line, VALUES) for i, line in enumerate(lines)]
    jobs += [(f"constructs together {i}", "\n".join(lines[i:i + 7]) + "\n\n", VALUES) for i in range(0, len(lines), 7)
             if "endif %}  " not in "\n".join(lines[i:i + 7])]
    white = [i for i, line in enumerate(lines) if line == "  {% if t %}  "][0]
    jobs.append(("white space", "\n".join(lines[white:white + 13]), VALUES))
    jobs.append(("white space, carriage returns", "\r\n".join(lines[white:white + 13]) + "\r\n", VALUES))
    jobs += [(f"failure {t}", t, VALUES) for t in FAILURES]
    jobs += [(f"syntax {t}", t, VALUES) for t in SYNTAX]
    cases = []
    for name, template, variables in jobs:
        case = {"name": name, "template": template, "variables": variables}
        try:
            case["text"] = render(template, variables)
        except Exception as error:  # whatever Python raises is a failure of the template
            case["error"] = True
            if not name.startswith(("failure", "syntax", "construct")):
                print(f"{name}: {type(error).__name__}: {error}")
        if name.startswith(("failure", "syntax")) and "text" in case:
            print(f"{name} did not fail: {case['text']!r}")
        if name.startswith("constructs") and "error" in case:
            print(f"{name} fails")
        if name.startswith("construct ") and "error" in case:
            print(f"{name} is a part of a block: {template!r}")
            continue
        cases.append(case)
    with open(sys.argv[1], "w") as file:
        file.write(json.dumps(cases, ensure_ascii=False) + "\n")
    if len(sys.argv) > 2:
        seeds = pathlib.Path(sys.argv[2])
        seeds.mkdir(parents=True, exist_ok=True)
        for family, template in FAMILIES.items():
            (seeds / f"{family}.jinja").write_text(template)
        (seeds / "constructs.jinja").write_text(CONSTRUCTS)
    print(f"{len(cases)} cases, {sum('text' in c for c in cases)} of them render")


if __name__ == "__main__":
    main()
