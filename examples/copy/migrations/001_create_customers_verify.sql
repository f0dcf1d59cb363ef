SELECT 'customers' AS suite, 'the table is there' AS "check",
    to_regclass('public.customers') IS NOT NULL AS ok;
